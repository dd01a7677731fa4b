"""Whether the files of a run have the shape that the commands give them, as far as a page needs it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medvfm_jax import local_paths

Rule = Callable[[Any], bool]


def _scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _scalars(value: Any) -> bool:
    return isinstance(value, list) and all(map(_scalar, value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(value: Any, check: Callable[[str], None] = local_paths.check) -> bool:
    if value is not None and not isinstance(value, str):
        return False
    try:
        check(value or "")
    except local_paths.BadPath:
        return False
    return True


def _source(value: Any) -> bool:
    """A folder of data or its URL."""
    return _path(value, local_paths.check_source)


def _table(of: Rule) -> Rule:
    return lambda value: value is None or (isinstance(value, dict) and all(map(of, value.values())))


def _scalar_or_list(value: Any) -> bool:
    return _scalar(value) or _scalars(value)


def _anything(value: Any) -> bool:
    return True


def _holdings(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(row, dict)
            and isinstance(row.get("client"), str)
            and all(_number(row.get(name, 0)) and row.get(name, 0) >= 0 for name in ("patients", "images"))
            and _table(lambda pixels: _number(pixels) and pixels >= 0)(row.get("pixels"))
            for row in value
        )
    )


def _checked(value: Any) -> bool:
    """What `medvfm check` found, see ``data.check.DatasetCheck.record``."""
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("findings"), list)
        and all(isinstance(row, dict) and isinstance(row.get("message"), str) for row in value["findings"])
    )


def _teacher(value: Any) -> bool:
    """What a student learned from, with the cases that it has seen, see ``runs.seen_cases``."""
    if not isinstance(value, dict):
        return value is None
    seen = value.get("seen", [])
    rows = isinstance(seen, list) and all(
        isinstance(row, dict) and _scalar(row.get("data_sha256")) and _scalars(row.get("cases"))
        for row in seen
    )
    return rows and all(_scalar(own) for name, own in value.items() if name != "seen")


_PATHS = ("weights", "out", "sites", "public_data")
_RESOLVED: dict[str, Rule] = {
    "data": _source,
    "adapter": _table(_anything),
    "transform": _table(_anything),
    "input_shape": _scalars,
    "checked": _checked,
    "algorithm_options": _table(_scalar_or_list),  # ranks of clients
    "codec_options": _table(_scalar),
    "compression": _table(_anything),
    "down_codec_options": _table(_scalar),
    "holdings": _holdings,
    "labels": _table(_scalar),
    "noise": _table(_scalar),
    "shifts": _table(_table(_scalar)),
    "split": _table(_scalars),
    "stages": _table(_table(_anything)),  # of a recipe of distillation
    "teacher": _teacher,
    "trained": _table(_scalar),
    "training_patients": _table(_scalar),
}


def damaged_settings(config: Mapping[str, Any]) -> str | None:
    """config.json -> name of the first setting that has another shape than a run gives it, None if all is well."""
    for name, value in config.items():
        if name in ("resolved", "placement"):
            holds: Rule = _table(_anything)
        elif name == "data":
            holds = _source
        elif name in _PATHS:
            holds = _path
        else:
            listed = name in ("annotated", "set", "window", "spacing")
            listed |= name.endswith("_set")  # as earlier versions wrote
            holds = _scalar_or_list if listed else _scalar
        if not holds(value):
            return name
    for name, value in (config.get("resolved") or {}).items():
        if not _RESOLVED.get(name, _scalar)(value):
            return f"resolved.{name}"
    return None


_CANARY = ("claimed_epsilon", "lower_bound", "confidence", "largest_possible", "trials")
_ATTACK = ("auc", "advantage", "members", "others")


def damaged_audit(found: Mapping[str, Any]) -> str | None:
    """audit.json -> name of the first part that has another shape than `audit` gives it, None if all is well."""
    if not found:
        return None
    canary, membership = found.get("canary"), found.get("membership")
    if not isinstance(found.get("not_private"), str | None):
        return "not_private"
    if canary is not None and not (isinstance(canary, dict) and all(_number(canary.get(n)) for n in _CANARY)):
        return "canary"
    if canary is not None and not isinstance(canary.get("left_out"), str | None):
        return "canary.left_out"
    if not isinstance(membership, dict):
        return "membership"
    for name in ("loss", "loss_change"):
        row = membership.get(name)
        if not isinstance(row, dict) or not all(_number(row.get(n)) for n in _ATTACK):
            return f"membership.{name}"
        if row.get("auc_error") is not None and not _number(row["auc_error"]):
            return f"membership.{name}.auc_error"
    allowed = [membership.get(name) for name in ("allowed_auc", "allowed_advantage")]
    return None if allowed == [None, None] or all(map(_number, allowed)) else "membership.allowed_auc"


def damaged_scores(scores: Mapping[str, Any]) -> str | None:
    """scores.json -> name of the first part that has another shape than `evaluate` gives it, None if all is well."""
    missing = next((name for name in ("summary", "cases") if not isinstance(scores.get(name), list)), None)
    if missing is not None:
        return missing
    provenance = scores.get("provenance")
    parts = {"provenance": provenance, "empty": scores.get("empty")}
    if isinstance(provenance, dict):
        parts |= {key: provenance.get(key) for key in ("versions", "trained")}
    for name, part in parts.items():
        if not isinstance(part, dict | None):
            return name
    for name in ("summary", "cases", "overlays", "skipped"):
        rows = scores.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return name
    if not _checked(scores.get("checked")):
        return "checked"
    if not isinstance(scores.get("compression", {}), dict):
        return "compression"
    runtime = scores.get("runtime", {"name": "", "bits": 0})
    if not isinstance(runtime, dict) or not all(_scalar(value) for value in runtime.values()):
        return "runtime"
    if not isinstance(runtime.get("name"), str) or type(runtime.get("bits")) is not int:
        return "runtime"
    models = scores.get("scored_by", {})
    if not isinstance(models, dict) or not all(isinstance(name, str) for name in models.values()):
        return "scored_by"
    for row in scores.get("summary") or ():
        if not isinstance(row.get("metric"), str) or not isinstance(row.get("label"), str):
            return "summary"
        if not all(row.get(n) is None or _number(row[n]) for n in ("mean", "low", "high", "median", "n")):
            return "summary"
    rows = scores.get("cases") or []
    named = all(row.get("label") is not None and (row.get("case") or row.get("patient")) for row in rows)
    if not named or _mixed(rows):
        return "cases"
    for name, kind in (("window", int), ("largest_component", str), ("ensemble", str)):
        values = scores.get(name, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            return name
    lists = ("summary", "cases", "overlays", "skipped", "provenance", "empty", "checked", "scored_by")
    lists += ("compression", "runtime", "window", "largest_component", "ensemble")
    return next((name for name, value in scores.items() if name not in lists and not _scalar(value)), None)


def _mixed(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Columns that hold numbers in some rows and something else in others, or lists or objects."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for column, value in row.items():
            if column in ("case", "patient", "site", "label"):
                if not isinstance(value, str | None):
                    return {column}
            elif value is not None:
                kinds.setdefault(column, set()).add(float if type(value) is int else type(value))
    return {column for column, found in kinds.items() if len(found) > 1 or found & {list, dict}}
