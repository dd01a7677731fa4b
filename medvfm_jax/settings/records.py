"""Settings as frozen records: what has no meaning is refused, and JSON holds them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from medvfm_jax import local_paths
from medvfm_jax.types import MedvfmError

_Config = TypeVar("_Config")
# Lists of options of earlier versions -> the part of the run that the options, now in ``set``, are of.
_OWN_LISTS = {"algorithm_set": "algorithm", "codec_set": "codec", "down_codec_set": "down_codec"}


class BadConfig(MedvfmError, ValueError):
    """Settings that contradict each other or have no meaning."""


class Settings:
    """Base of settings: the ``__post_init__`` of each group checks its own fields and passes on."""

    def __post_init__(self) -> None:
        """Refuse paths that no system takes; raises BadPath."""
        local_paths.check_all(self)


def to_json(config: Any) -> dict[str, Any]:
    """Settings as JSON can hold them: paths as text, tuples as lists.

    Args:
        config: a frozen record of settings.

    Returns:
        Field name -> value.
    """
    record = dataclasses.asdict(config)
    return {
        n: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for n, v in record.items()
    }


def as_of_today(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ``config.json`` that an earlier version wrote, under today's names; one of today's unchanged.

    Raises BadConfig for a list of options that is none.
    """
    old = {name: record[name] for name in _OWN_LISTS if name in record}
    if not old:
        return record
    for name, texts in {"set": record.get("set", []), **old}.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadConfig(
                f"The settings of a run have {name}={texts!r:.80}; expected a list of option=value."
            )
    moved = [f"{_OWN_LISTS[name]}.{text}" for name, texts in old.items() for text in texts]
    kept = {name: value for name, value in record.items() if name not in old}
    return kept | {"set": [*record.get("set", []), *moved]}


def from_json(kind: type[_Config], record: Mapping[str, Any]) -> _Config:
    """Settings from a run's ``config.json``, of this or an earlier version.

    Args:
        kind: the record.
        record: contents of the file; a setting it lacks has its default, names that ``kind`` does not know are left
            out.

    Returns:
        An instance of ``kind``.

    Raises:
        BadConfig: a setting without default is missing, or has a value that ``kind`` refuses.
    """
    record, found = as_of_today(record), {}
    for field in dataclasses.fields(kind):
        if field.name in record:
            value = record[field.name]
            value = tuple(value) if isinstance(value, list) else value
            is_path = field.type in (Path, Path | None)
            found[field.name] = Path(value) if is_path and value is not None else value
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in found]:
        raise BadConfig(f"The settings of a run are incomplete: there is no {' and no '.join(missing)}.")
    try:
        return kind(**found)
    except TypeError as error:
        raise BadConfig(
            "The settings of a run have a value of another kind than this setting takes."
        ) from error


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise BadConfig about a setting unless ``holds``."""
    if not holds:
        raise BadConfig(f"{name} is {value}; expected {expected}.")


def require_distance(allow_geometry_mismatch: float) -> None:
    """Raise BadConfig unless the option is a distance in mm."""
    fine = 0 <= allow_geometry_mismatch < math.inf
    require(fine, "allow_geometry_mismatch", allow_geometry_mismatch, "a number of mm, 0 or more")
