"""A plain folder: ``images/`` with ``masks/`` and, optionally, ``instances/``, ``sites.csv``, ``labels.json``."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.data.records import BadDataset, Case, Dataset, whole_number
from medvfm_jax.data.sites import NO_SITES, SiteTable
from medvfm_jax.images import BadImage, read_labels
from medvfm_jax.images.reading import NIFTI, SUFFIXES, distinct_values, stem_of, suffix_of

_MOST_CLASSES = 64  # more distinct values are instance numbers or grey levels
_UNLABELLED = 255  # among other classes, the customary value for pixels nobody labelled


class LabelScheme(NamedTuple):
    """Class names and what stands for them in the files; see ``Dataset``."""

    labels: dict[str, int]
    values: tuple[int, ...]
    ignore: int | None


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has images/ and masks/ or instances/."""
    return (folder / "images").is_dir() and any((folder / d).is_dir() for d in ("masks", "instances"))


def open_folder(folder: Path, sites: SiteTable = NO_SITES) -> Dataset:
    """Folder -> Dataset; image, mask and instance map of a case share their name up to the suffix.

    Mask values: 0 and one other value, whichever (255, 1): background and "foreground"; several values: one
    class each, and 255 among them means "not labelled". ``labels.json`` ({"background": 0, "cell": 1,
    "ignore": 255}) gives names, and is then binding. Without masks/, instances/ give the foreground. Images
    without a reference are left out. Raises BadDataset.
    """
    images = _by_stem(folder / "images")
    masks, instances = _by_stem(folder / "masks"), _by_stem(folder / "instances")
    if not images:
        raise BadDataset(f"{folder / 'images'} has no images; expected {', '.join(SUFFIXES)}.")
    reference = masks or instances
    orphans = sorted(set(reference) - set(images))
    if orphans:
        raise BadDataset(f"{folder} has a mask but no image for '{orphans[0]}' ({len(orphans)} such).")
    names = sorted(set(images) & set(reference))
    if not names:
        raise BadDataset(f"{folder} has no image with a mask of the same name.")
    scheme = _scheme(folder, [masks[name] for name in names] if masks else [])
    endings = Counter(suffix_of(images[name]) for name in names)
    if len({e in NIFTI for e in endings}) > 1:
        raise BadDataset(f"{folder / 'images'} mixes pictures and volumes; keep them in separate folders.")
    ending = endings.most_common(1)[0][0]
    cases = tuple(
        Case(name, *sites.of(name), (images[name],), masks.get(name), instances.get(name)) for name in names
    )
    return Dataset(
        name=folder.name, folder=folder, cases=cases, labels=scheme.labels, ignore=scheme.ignore,
        dimension=3 if ending in NIFTI else 2, licence=_licence(folder), values=scheme.values, file_ending=ending,
    )  # fmt: skip


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or suffix_of(path) not in SUFFIXES:
            continue
        if stem_of(path) in found:
            raise BadDataset(f"{folder} has two files named '{stem_of(path)}'; give them different names.")
        found[stem_of(path)] = path
    return found


def _scheme(folder: Path, masks: list[Path]) -> LabelScheme:
    path = folder / "labels.json"
    if path.is_file():
        return _declared(path)
    if not masks:
        return LabelScheme({"background": 0, "foreground": 1}, (0, 1), None)
    values = _values(masks)
    others = [v for v in values if v != 0]
    if len(others) <= 1:
        return LabelScheme({"background": 0, "foreground": 1}, (0, others[0] if others else 1), None)
    if len(values) > _MOST_CLASSES or others[0] < 0:
        raise BadDataset(
            f"{folder / 'masks'} has {len(values)} different values from {min(values)} to {max(values)}, too many "
            "for classes; put instance numbers into instances/, or name the classes in labels.json."
        )
    ignore = _UNLABELLED if _UNLABELLED in others and len(others) > 1 else None
    kept = (0, *(v for v in others if v != ignore))
    if len(kept) == 2:  # one class besides the unlabelled pixels
        return LabelScheme({"background": 0, "foreground": 1}, kept, ignore)
    return LabelScheme({"background": 0} | {f"label {v}": i for i, v in enumerate(kept[1:], 1)}, kept, ignore)


def _declared(path: Path) -> LabelScheme:
    try:
        table = {
            str(name): whole_number(value)
            for name, value in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadDataset(f'{path} cannot be read ({error}); expected {{"background": 0, ...}}.') from error
    ignore = table.pop("ignore", None)
    ordered = sorted(table.items(), key=lambda item: item[1])
    distinct = {v for _, v in ordered} | ({ignore} if ignore is not None else set())
    if len(ordered) < 2 or ordered[0][1] != 0 or len(distinct) < len(ordered) + (ignore is not None):
        raise BadDataset(f"{path} needs a background 0 and at least one other label, all different.")
    return LabelScheme({name: i for i, (name, _) in enumerate(ordered)}, tuple(v for _, v in ordered), ignore)


def _values(masks: list[Path]) -> list[int]:
    """All values that occur in readable masks; what is wrong with the others is said when they are read."""

    def of(path: Path) -> set[int]:
        try:
            return set(distinct_values(read_labels(path).array))
        except BadImage:
            return set()

    with ThreadPoolExecutor(2) as pool:
        return sorted(set().union(*pool.map(of, masks)))


def _licence(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENCE", "LICENCE.txt"):
        if (folder / name).is_file():
            first = (folder / name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return first[0][:300] if first else "unknown"
    return "unknown"
