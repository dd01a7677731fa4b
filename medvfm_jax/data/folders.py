"""A plain folder: ``images/`` with ``masks/`` and, optionally, ``instances/``, ``sites.csv``, ``labels.json``."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medvfm_jax.data.findings import Findings, named, note_unused
from medvfm_jax.data.mask_values import ONE_CLASS, scheme_of
from medvfm_jax.data.names import check_inside, check_name
from medvfm_jax.data.records import BadDataset, Case, Dataset
from medvfm_jax.data.sites import NO_SITES, SiteTable
from medvfm_jax.images.reading import NIFTI, SUFFIXES, stem_of, suffix_of


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has images/ and masks/ or instances/."""
    return (folder / "images").is_dir() and any((folder / d).is_dir() for d in ("masks", "instances"))


def open_folder(
    folder: Path,
    sites: SiteTable = NO_SITES,
    found: Findings | None = None,
    *,
    follow_links: bool = False,
    cached: bool = True,
) -> Dataset:
    """Folder -> Dataset; image, mask and instance map of a case share their name up to the suffix.

    What numbers in masks mean: ``mask_values.scheme_of``. Without masks/, instances/ give the foreground. Images
    without a reference are left out, counted and named; a reference without an image is refused. cached: see
    ``scheme_of``. Raises BadDataset.
    """
    found = found or Findings()
    images, masks, instances = (
        _by_stem(folder, kind, found, follow_links) for kind in ("images", "masks", "instances")
    )
    if not images:
        raise BadDataset(f"{folder / 'images'} has no images; expected {', '.join(SUFFIXES)}.")
    reference = masks or instances
    for files, what in ((masks, "a mask"), (instances, "an instance map")):
        orphans = sorted(set(files) - set(images))
        if orphans:
            error = BadDataset(
                f"{folder} has {what} but no image for {named(orphans)} ({len(orphans)} such)."
            )
            found.error("label without image", error, orphans)
    names = sorted(set(images) & set(reference))
    if not names:
        raise BadDataset(f"{folder} has no image with a mask of the same name.")
    _count_the_rest(folder, images, masks, instances, found)
    scheme = scheme_of(folder, [masks[name] for name in names], found, cached=cached) if masks else ONE_CLASS
    if not masks and (folder / "labels.json").is_file():
        scheme = scheme_of(folder, [], found)
    endings = Counter(suffix_of(images[name]) for name in names)
    if len({e in NIFTI for e in endings}) > 1:
        error = BadDataset(f"{folder / 'images'} mixes pictures and volumes; keep them in separate folders.")
        found.error("two formats", error)
    ending = endings.most_common(1)[0][0]
    cases = tuple(
        Case(name, *sites.of(name), (images[name],), masks.get(name), instances.get(name)) for name in names
    )
    return Dataset(
        name=folder.name, folder=folder, cases=cases, labels=scheme.labels, ignore=scheme.ignore,
        dimension=3 if ending in NIFTI else 2, licence=_licence(folder, follow_links), values=scheme.values,
        file_ending=ending,
    )  # fmt: skip


def _count_the_rest(
    folder: Path,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    instances: Mapping[str, Path],
    found: Findings,
) -> None:
    """Images that are left out, and cases whose objects are not told apart although those of others are."""
    without = sorted(set(images) - set(masks or instances))
    if without:
        what = "mask" if masks else "instance map"
        found.note(
            "image without label",
            f"{len(without)} of {len(images)} images in {folder} have no {what} and are left out: {named(without)}",
            without,
        )
    single = sorted((set(images) & set(masks)) - set(instances)) if masks and instances else []
    if single:
        message = f"{len(single)} of {len(masks)} masks in {folder} have no instance map: {named(single)}"
        found.note("instance maps", message, single)


def _by_stem(folder: Path, kind: str, found: Findings, follow_links: bool) -> dict[str, Path]:
    """Files of a sub-folder by the name of their case; empty if there is none."""
    if not (folder / kind).is_dir():
        return {}
    files: dict[str, Path] = {}
    unused: list[str] = []
    for path in sorted((folder / kind).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() or suffix_of(path) not in SUFFIXES:
            unused.append(path.name)
            continue
        stem = stem_of(path)
        try:
            check_inside(path, folder, follow_links)
            check_name(stem, path.parent)
        except BadDataset as error:
            found.error("name or path", error, [stem])
            continue
        if stem in files:
            error = BadDataset(
                f"{path.parent} has two files named '{stem}' ({files[stem].name}, {path.name}); "
                "give them different names, or remove one."
            )
            found.error("two formats", error, [stem])
        files.setdefault(stem, path)
    note_unused(folder / kind, unused, found)
    return files


def _licence(folder: Path, follow_links: bool) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENCE", "LICENCE.txt"):
        if (folder / name).is_file():
            path = check_inside(folder / name, folder, follow_links)  # its first line goes into every report
            first = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return first[0][:300] if first else "unknown"
    return "unknown"
