"""Open a dataset, whatever its layout, and read its cases with every check that can be made on them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import folders, mni152, nnunet
from medvfm_jax.data.case_notes import ALLOWED, ROUNDED
from medvfm_jax.data.findings import Findings, note_hidden
from medvfm_jax.data.names import check_inside
from medvfm_jax.data.records import (
    BadCase,
    BadDataset,
    Case,
    Dataset,
    GeometryMismatch,
    LoadedCase,
    Objects,
    UnknownLabel,
    WrongChannels,
)
from medvfm_jax.data.sites import check_sites, read_sites
from medvfm_jax.fetch import fetch_folder
from medvfm_jax.images import BadImage, Image, read, read_labels
from medvfm_jax.images.geometry import Mismatch, mismatch
from medvfm_jax.images.image import TURNED
from medvfm_jax.images.reading import distinct_values
from medvfm_jax.local_paths import is_url
from medvfm_jax.printable import counted
from medvfm_jax.types import IGNORE

_LARGEST_NUMBER = 1 << 20  # of an object; tables are made for all numbers below the largest

BUILTIN = {mni152.NAME: mni152.materialise}


def same_source(first: str | Path, second: str | Path) -> bool:
    """Whether two sources of data are one: the same URL, or the same folder."""
    if is_url(first) or is_url(second):
        return str(first).rstrip("/") == str(second).rstrip("/")
    return Path(first).resolve() == Path(second).resolve()


def open_dataset(
    source: str | Path,
    *,
    allow_geometry_mismatch: float = 0.0,
    offline: bool = False,
    follow_links: bool = False,
    objects: Objects | None = None,
    found: Findings | None = None,
    cached: bool = True,
) -> Dataset:
    """Open a folder or a built-in dataset.

    A folder is nnU-Net v2 (``dataset.json``, ``imagesTr``, ``labelsTr``) or plain (``images/``, ``masks/``,
    ``instances/``); either may have a ``sites.csv``.  Only file names, and the values in plain masks, are read
    here; ``read_case`` checks a case.

    Args:
        source: a folder, the name of a built-in dataset such as "mni152_tissue", or the URL of a folder on storage
            (``gs://bucket/folder``), which is brought into the cache first (``fetch.fetch_folder``).
        allow_geometry_mismatch: accept label maps of the right shape with corners up to so many mm from their
            image's.
        offline: do not download a built-in dataset, and take what was brought from a URL last.
        follow_links: files may lie outside the folder.
        objects: what one prompt is about, see ``data.objects``; default "auto".
        found: collects errors that would be raised.
        cached: reuse the values found in plain masks by an earlier call.

    Returns:
        A Dataset.

    Raises:
        BadDataset: no such folder, no known layout, or files that contradict each other.
        FetchError: the storage of a URL, or what a built-in dataset is made of, cannot be had.
    """
    found, url = found or Findings(), None
    if is_url(source):
        url = str(source).rstrip("/")
        source = _fetched(url, offline, found)
    if str(source) in BUILTIN and not Path(source).exists():
        source = BUILTIN[str(source)](offline=offline)
    folder = Path(source)
    if not folder.is_dir():
        raise BadDataset(
            f"{folder} is not a folder; expected a dataset folder, or one of: {', '.join(BUILTIN)}."
        )
    for name in ("dataset.json", "labels.json", "sites.csv", "splits_final.json"):
        check_inside(folder / name, folder, follow_links)
    sites = read_sites(folder)
    if nnunet.is_nnunet(folder):
        dataset = nnunet.open_nnunet(folder, sites, found, follow_links=follow_links)
    elif folders.is_image_folder(folder):
        dataset = folders.open_folder(folder, sites, found, follow_links=follow_links, cached=cached)
    elif not any(folder.iterdir()):
        raise BadDataset(f"{folder} is empty; expected images/ and masks/, or nnU-Net's dataset.json.")
    else:
        raise BadDataset(
            f"{folder} is no dataset; expected images/ and masks/ with files of equal names, "
            "or nnU-Net's dataset.json, imagesTr/ and labelsTr/."
        )
    check_sites(sites, set(dataset.by_id), folder / "sites.csv", found)
    note_hidden(folder, found)
    return dataclasses.replace(
        dataset,
        allow_geometry_mismatch=allow_geometry_mismatch,
        objects=objects or "auto",
        findings=tuple(found),
        url=url,
    )


def _fetched(url: str, offline: bool, found: Findings) -> Path:
    folder, others, room = fetch_folder(url, offline=offline)
    if others:
        found.note(
            "earlier copies",
            f"{room} holds {counted(others, 'other state')} of {url}; remove those that no run needs",
        )
    return folder


def read_case(dataset: Dataset, case: Case | str) -> LoadedCase:
    """Read image, label map and instance map of a case, and check that they belong together.

    Args:
        dataset: the dataset.
        case: one of its cases, or its id.

    Returns:
        The arrays; if there is only an instance map, the label is 1 on objects.

    Raises:
        BadDataset: the dataset has no such case.
        BadCase: a file cannot be read, or all objects lie outside the classes.
        GeometryMismatch: shapes or affines differ.
        WrongChannels: another number of channels than declared.
        UnknownLabel: label values that the dataset does not declare.
    """
    case = dataset.case(case) if isinstance(case, str) else case
    try:
        image = read_image(dataset, case)
        label = None if case.label is None else read_label(dataset, case, image)
        instances = None if case.instances is None else read_instances(dataset, case, image)
    except BadImage as error:
        raise BadCase(str(error)) from error
    if dataset.alter is not None:
        image = image._replace(array=dataset.alter(case, image.array))
    if label is None and instances is not None:
        label = (instances > 0).astype(np.int32)
    elif instances is not None:
        check_overlap(case, label, instances)
    return LoadedCase(case, image, label, instances)


def read_image(dataset: Dataset, case: Case) -> Image:
    """Image of a case with its declared channels, before ``dataset.alter``. Raises BadCase, BadImage."""
    channels = [read(path) for path in case.images]
    for channel in channels:
        _note(dataset, case, channel)
    for path, channel in zip(case.images[1:], channels[1:]):
        _check_grid(dataset, case, channel, channels[0], path)
    first = channels[0]
    if len(channels) > 1:
        first = first._replace(array=np.concatenate([c.array for c in channels], axis=-1))
    names, count = dataset.channel_names, first.array.shape[-1]
    expected = len(names) or len(case.images)
    colours = not first.is_volume and len(case.images) == 1 and len(names) <= 1
    if count != expected and not colours:
        shape = f"shape {first.array.shape}: " if first.is_volume else ""
        times = " or time points" if shape and count > 1 else ""
        where = f"dataset.json names {len(names)} ({', '.join(names)})" if names else f"expected {expected}"
        raise WrongChannels(
            f"Case '{case.id}' in {dataset.folder} has {shape}{counted(count, 'channel')}{times}; "
            f"{where}. Store one file per channel, or keep one time point."
        )
    if (dataset.dimension == 3) != first.is_volume:
        kind = "volume" if first.is_volume else "picture"
        raise BadCase(
            f"{case.images[0]} is a {kind}, unlike the other images of {dataset.folder}; volumes in a dataset are "
            ".nii.gz files."
        )
    return first


def read_label(dataset: Dataset, case: Case, image: Image) -> NDArray[np.int32]:
    """Class indices (H, W) or (X, Y, Z), IGNORE where the file says so. Raises BadCase, BadImage."""
    read_in = read_labels(case.label)
    _note(dataset, case, read_in)
    _check_grid(dataset, case, read_in, image, case.label)
    raw = read_in.array[..., 0]
    known = {value: index for index, value in enumerate(dataset.values)}
    if dataset.ignore is not None:
        known[dataset.ignore] = IGNORE
    unknown = sorted(set(distinct_values(raw)) - set(known))
    if unknown:
        count = int(np.isin(raw, unknown).sum())
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise UnknownLabel(
            f"{case.label} has {counted(count, 'pixel')} with the value {shown}, which {_where_declared(dataset)} does "
            f"not declare; expected {', '.join(map(str, sorted(known)))}."
        )
    values = np.array(sorted(known))
    return np.array([known[int(v)] for v in values], np.int32)[np.searchsorted(values, raw)]


def _where_declared(dataset: Dataset) -> str:
    for name in ("dataset.json", "labels.json"):
        if (dataset.folder / name).is_file():
            return name
    return "the dataset"


def read_instances(dataset: Dataset, case: Case, image: Image) -> NDArray[np.int32]:
    """Object numbers (H, W) or (X, Y, Z), 0 where there is none. Raises BadCase, BadImage."""
    read_in = read_labels(case.instances)
    _note(dataset, case, read_in)
    _check_grid(dataset, case, read_in, image, case.instances)
    numbers = read_in.array[..., 0]
    if numbers.size and not (numbers.min() >= 0 and numbers.max() <= _LARGEST_NUMBER):
        raise BadCase(
            f"{case.instances} numbers objects from {numbers.min()} to {numbers.max()}; expected 0 for the background "
            f"and 1, 2, ... up to {_LARGEST_NUMBER:,}."
        )
    return numbers


def check_overlap(case: Case, label: NDArray[np.int32], numbers: NDArray[np.int32]) -> None:
    """Raise BadCase if there are objects and none lies in a class of the label map.

    label: class indices or IGNORE, numbers: of objects, both of the same shape. What lies outside in part is no error.
    """
    objects = numbers > 0
    if objects.any() and not (objects & (label != 0)).any():
        count, foreground = len(distinct_values(numbers[objects])), int((label > 0).sum())
        raise BadCase(
            f"{case.instances} does not belong to {case.label}: {counted(count, 'object')}, none with a pixel among "
            f"the {counted(foreground, 'pixel')} of the classes; export both from the same image."
        )


def _note(dataset: Dataset, case: Case, image: Image) -> None:
    for note in image.notes:
        dataset.notes.add(note, case.id)


def _check_grid(dataset: Dataset, case: Case, image: Image, reference: Image, path: Path) -> None:
    """Refuse a file that does not lie on the grid of the case's first; note what rounding or the user allows."""
    found = mismatch(image, reference)
    if not found.what:
        if found.rounded:
            dataset.notes.add(ROUNDED, case.id, found.distance)
        return
    if image.grid == reference.grid and found.distance <= dataset.allow_geometry_mismatch:
        dataset.notes.add(ALLOWED, case.id, found.distance)
        return
    raise GeometryMismatch(
        f"{path} does not lie on the grid of {case.images[0]}: {found.what}; {_advice(image, reference, found)}."
    )


def _advice(image: Image, reference: Image, found: Mismatch) -> str:
    if TURNED in reference.notes and image.grid == reference.grid[::-1]:
        return (
            "it fits the pixels as stored, but the EXIF orientation of the image turns them: turn it as well"
        )
    if TURNED in image.notes and image.grid == reference.grid[::-1]:
        return "its own EXIF orientation turns it away from the image: remove that tag"
    if image.grid != reference.grid:
        return "export both from the same image"
    return f"repair the header, or allow so much with --allow-geometry-mismatch {_rounded_up(found.distance)} (mm)"


def _rounded_up(distance: float) -> str:
    """The distance with two digits, not less than it is."""
    unit = 10.0 ** (math.floor(math.log10(distance)) - 1)
    return f"{math.ceil(distance / unit) * unit:.6g}"
