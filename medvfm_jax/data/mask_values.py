"""What the numbers in the masks of a plain folder stand for: decided over all files at once, or refused."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from medvfm_jax import json_text
from medvfm_jax.data import check_cache
from medvfm_jax.data.findings import Findings, named
from medvfm_jax.data.names import check_text
from medvfm_jax.data.records import BadDataset, whole_number
from medvfm_jax.images import BadImage, read_labels
from medvfm_jax.images.reading import distinct_values, suffix_of
from medvfm_jax.printable import counted

_MOST_CLASSES = 64  # more distinct values, or larger ones among several, are instance numbers or grey levels
_UNLABELLED = 255  # among class numbers of one file, the customary value for unlabelled pixels
_THREADS = 2
UNCLEAR_MASKS = "mask convention"  # kind of the finding
_LOSSY = (".jpg", ".jpeg")


class LabelScheme(NamedTuple):
    """Class names and what stands for them in the files; see ``Dataset``."""

    labels: dict[str, int]
    values: tuple[int, ...]
    ignore: int | None


class UnclearMasks(BadDataset):
    """Masks whose numbers may mean different things."""


ONE_CLASS = LabelScheme({"background": 0, "foreground": 1}, (0, 1), None)


def scheme_of(folder: Path, masks: Sequence[Path], found: Findings, *, cached: bool = True) -> LabelScheme:
    """Numbers in all readable masks of a folder -> what they mean; ``labels.json`` is binding if there is one.

    0 and one other number in all files, whichever (255, 1, 65535): background and "foreground". Several numbers up to
    64: one class each, and 255 beside class numbers in the same file means "not labelled". Refused (UnclearMasks),
    because they can be read in two ways: 255 as the only class of some files and other numbers in others, grey levels
    (0, 128, 255), several numbers none of which is 0, several numbers in JPEG files. cached: trust the values
    found earlier. Raises BadDataset.
    """
    path = folder / "labels.json"
    if path.is_file():
        return _declared(path)
    per_file = _values(folder, masks, found, cached)
    values = sorted(set().union(*per_file.values()))
    others = [v for v in values if v != 0]
    if len(others) <= 1:
        scheme = LabelScheme(ONE_CLASS.labels, (0, others[0] if others else 1), None)
    else:
        try:
            _refuse_unclear(folder, per_file, values)
        except UnclearMasks as error:
            found.error(UNCLEAR_MASKS, error)
            return _several(others)  # for callers that go on; its meaning is not reported
        scheme = _several(others)
    _say(folder, scheme, len(masks), found)
    return scheme


def _several(others: Sequence[int]) -> LabelScheme:
    ignore = _UNLABELLED if _UNLABELLED in others else None
    kept = (0, *(v for v in others if v != ignore))
    if len(kept) == 2:  # one class besides the unlabelled pixels
        return LabelScheme(ONE_CLASS.labels, kept, ignore)
    return LabelScheme({"background": 0} | {f"label {v}": i for i, v in enumerate(kept[1:], 1)}, kept, ignore)


def _refuse_unclear(folder: Path, per_file: Mapping[Path, set[int]], values: Sequence[int]) -> None:
    masks, others = folder / "masks", [v for v in values if v != 0]
    remedy = "say what they mean in labels.json, or write the masks anew with numbers 0, 1, 2, ..."
    classes = [v for v in others if v != _UNLABELLED]
    lossy = [path.name for path, found in per_file.items() if suffix_of(path) in _LOSSY and len(found) > 2]
    if lossy:
        raise UnclearMasks(
            f"{masks} has JPEG files with more than two values ({named(lossy)}): compression has changed the numbers; "
            "write the masks anew as PNG."
        )
    if len(values) > _MOST_CLASSES or others[0] < 0:
        raise UnclearMasks(
            f"{masks} has {len(values)} different values from {min(values)} to {max(values)}, too many "
            "for classes; put instance numbers into instances/, or name the classes in labels.json."
        )
    alone = [path.name for path, found in per_file.items() if found - {0} == {_UNLABELLED}]
    rest = [path for path, found in per_file.items() if found - {0, _UNLABELLED}]
    if alone and rest:
        other = sorted(set().union(*(per_file[path] for path in rest)) - {0, _UNLABELLED})
        raise UnclearMasks(
            f"{masks} mixes conventions: {counted(len(alone), 'file')} with 0 and 255 ({named(alone)}), {len(rest)} "
            f"with {_listed(other)} ({named([path.name for path in rest])}); {remedy}"
            f"{', with 255 as ignore if it means not labelled' if other else ''}."
        )
    if max(classes) > _MOST_CLASSES:
        raise UnclearMasks(
            f"{masks} has the values {_listed(values)}, which look like grey levels or object numbers and not like "
            f"classes; {remedy}."
        )
    if 0 not in values:
        raise UnclearMasks(f"{masks} has the values {_listed(values)} and no 0 for the background; {remedy}.")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")


def _say(folder: Path, scheme: LabelScheme, files: int, found: Findings) -> None:
    """Whatever had to be decided is said."""
    if scheme.values == tuple(range(len(scheme.values))) and scheme.ignore is None:
        return
    meaning = [f"{value} {name}" for name, value in zip(scheme.labels, scheme.values, strict=True)]
    meaning += [f"{scheme.ignore} not labelled"] if scheme.ignore is not None else []
    found.note("mask values", f"numbers in {counted(files, 'mask')} of {folder}: {', '.join(meaning)}")


def _declared(path: Path) -> LabelScheme:
    try:
        found = json_text.read(path)
        if not isinstance(found, dict):
            raise json_text.BadJson(f"it holds {json_text.shown(found)}")
        table = {check_text(name, path, "label"): whole_number(value) for name, value in found.items()}
    except BadDataset:
        raise
    except ValueError as error:
        raise BadDataset(f'{path} cannot be read ({error}); expected {{"background": 0, ...}}.') from error
    ignore = table.pop("ignore", None)
    ordered = sorted(table.items(), key=lambda item: item[1])
    distinct = {v for _, v in ordered} | ({ignore} if ignore is not None else set())
    if len(ordered) < 2 or ordered[0][1] != 0 or len(distinct) < len(ordered) + (ignore is not None):
        raise BadDataset(f"{path} needs a background 0 and at least one other label, all different.")
    return LabelScheme({name: i for i, (name, _) in enumerate(ordered)}, tuple(v for _, v in ordered), ignore)


def _values(folder: Path, masks: Sequence[Path], found: Findings, cached: bool) -> dict[Path, set[int]]:
    """The values in each readable mask; what is wrong with the others is said when they are read."""
    kept_in = check_cache.cache_file("mask values", str(folder.resolve()))
    known: dict[str, set[int]] = {}
    if cached:
        known = check_cache.load(
            kept_in, lambda values: set(map(int, values)), lambda text: found.note("cache", text)
        )
    keys = {path: check_cache.key_of(path) for path in masks}
    missing = [path for path in masks if keys[path] not in known]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = dict(zip(missing, pool.map(_distinct, missing), strict=True))
    values = {path: read[path] if path in read else known[keys[path]] for path in masks}
    # A mask that cannot be read is not kept: a higher limit of memory, or the file system, may give it next time.
    if any(read.values()):
        check_cache.store(kept_in, {keys[path]: sorted(v) for path, v in values.items() if keys[path] and v})
    return values


def _distinct(path: Path) -> set[int]:
    """The values in a mask, none if it cannot be read."""
    try:
        return set(distinct_values(read_labels(path).array))
    except BadImage:
        return set()
