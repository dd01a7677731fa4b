"""Dataset folders of nnU-Net v2, and of v1 and the Medical Segmentation Decathlon.

v2: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz`` (one file per channel), ``labelsTr/CASE.nii.gz``.
v1 and Decathlon: ``modality`` instead of ``channel_names``, labels as number -> name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvfm_jax import json_text
from medvfm_jax.data.findings import Findings, named, note_unused
from medvfm_jax.data.names import check_inside, check_name, check_text, path_text, shown
from medvfm_jax.data.records import BadDataset, Case, Dataset, whole_number
from medvfm_jax.data.sites import NO_SITES, SiteTable
from medvfm_jax.images.reading import NIFTI, SUFFIXES, suffix_of
from medvfm_jax.printable import counted

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def is_nnunet(folder: Path) -> bool:
    """Whether the folder looks like one of nnU-Net's."""
    return (folder / "dataset.json").is_file()


def open_nnunet(
    folder: Path, sites: SiteTable = NO_SITES, found: Findings | None = None, *, follow_links: bool = False
) -> Dataset:
    """Folder -> Dataset with the cases of ``imagesTr``; raises BadDataset.

    ``ignore`` among the labels is the value no loss and no score looks at. Labels made of several values
    (nnU-Net's regions) become one class per value, named after the regions that contain it. Labels without an image,
    images without a label and ``.nii`` beside ``.nii.gz`` are refused; another number of cases than ``numTraining``
    is said. follow_links: paths of the "dataset" table and symbolic links may lead out of the folder.
    """
    found = found or Findings()
    info = _read_json(folder / "dataset.json")
    labels, values, ignore = _labels(folder, info)
    channels = _channel_names(folder, info)
    ending = _ending(folder, info)
    listed = _listed(folder, info, found)
    files = listed or _found(folder, info, ending, found)
    if not files:
        raise BadDataset(f"{folder / 'imagesTr'} has no '*{ending}' images; expected CASE_0000{ending}.")
    cases = []
    for name, (images, label) in sorted(files.items()):
        try:
            _check_case(folder, name, images, label, channels, follow_links)
        except BadDataset as error:
            found.error(_kind(error), error, [name])
            continue
        patient, site = sites.of(name)
        cases.append(Case(name, patient, site, tuple(images), label))
    _count(folder, info, ending, files, bool(listed), found)
    return Dataset(
        name=str(info.get("name") or folder.name), folder=folder, cases=tuple(cases), labels=labels,
        ignore=ignore, dimension=3 if ending in (*NIFTI, ".npy") else 2,
        licence=str(info.get("licence") or info.get("license") or "unknown"),
        channel_names=channels, values=values, file_ending=ending, note=str(info.get("note") or ""),
    )  # fmt: skip


class _MissingFile(BadDataset):
    """A case without one of its files."""


class _WrongChannels(BadDataset):
    """A case with another number of channel files than dataset.json names."""


def _kind(error: BadDataset) -> str:
    kinds = {_MissingFile: "image without label", _WrongChannels: "channels"}
    return kinds.get(type(error), "name or path")


def _check_case(
    folder: Path, name: str, images: list[Path], label: Path, channels: tuple[str, ...], follow_links: bool
) -> None:
    check_name(name, folder)
    if not images or (channels and len(images) not in (1, len(channels))):
        raise _WrongChannels(
            f"Case '{name}' in {folder} has {counted(len(images), 'channel file')}; dataset.json names "
            f"{counted(len(channels), 'channel')} ({', '.join(channels)})."
        )
    for path in (*images, label):
        check_inside(path, folder, follow_links)
    missing = next((p for p in (*images, label) if not p.is_file()), None)
    if missing is not None:
        numbered = images[0].name.startswith(f"{name}_0000")
        remedy = (
            ""
            if numbered
            else f"; an image is named after its label, LABEL_0000{suffix_of(images[0])}: rename it"
        )
        raise _MissingFile(
            f"Case '{name}' has no file {path_text(missing)}{remedy if missing == label else ''}."
        )


def _ending(folder: Path, info: dict[str, Any]) -> str:
    ending = str(info.get("file_ending") or "") or _guess_ending(folder / "imagesTr")
    if ending.lower() not in SUFFIXES:  # it becomes a part of paths
        raise BadDataset(
            f"{folder / 'dataset.json'} has the file_ending {shown(ending)}; expected one of {', '.join(SUFFIXES)}."
        )
    return ending


def _count(
    folder: Path,
    info: dict[str, Any],
    ending: str,
    files: Mapping[str, tuple[list[Path], Path]],
    listed: bool,
    found: Findings,
) -> None:
    """Whatever lies in the folders without becoming a case."""
    used = {path for images, label in files.values() for path in (*images, label)}
    expected = info.get("numTraining")
    if expected not in (None, len(files)):
        found.note(
            "number of cases",
            f"{folder / 'dataset.json'} says numTraining={expected}; {counted(len(files), 'case')} "
            f"{'is' if len(files) == 1 else 'are'} here",
        )
    for kind in ("imagesTr", "labelsTr"):
        unused = [path for path in _image_files(folder / kind) if path not in used]
        same = [path.name for path in unused if path.name.lower().endswith(ending.lower())]
        siblings = [path.name for path in unused if suffix_of(path) in NIFTI and path.name not in same]
        others = [path.name for path in unused if path.name not in (*same, *siblings)]
        if siblings and ending in NIFTI:
            error = BadDataset(
                f"{folder / kind} has .nii beside .nii.gz: not in {ending}, so not used, would be "
                f"{counted(len(siblings), 'file')} ({named(siblings)}); convert or remove them."
            )
            found.error("two formats", error, siblings)
        elif siblings:
            others += siblings
        if same and kind == "labelsTr" and not listed:
            error = BadDataset(
                f"{folder / kind} has a label but no image for {named(same)} ({len(same)} such); add the images or "
                "remove the labels."
            )
            found.error("label without image", error, [name[: -len(ending)] for name in same])
        elif same:
            others += same
        others += _unreadable(folder / kind)
        note_unused(folder / kind, others, found)


def _unreadable(folder: Path) -> list[str]:
    """Folders, and files of other kinds, where images are expected."""
    if not folder.is_dir():
        return []
    return sorted(
        p.name
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p.is_dir() or suffix_of(p) not in SUFFIXES)
    )


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and suffix_of(p) in SUFFIXES)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        info = json_text.read(path)
    except json_text.BadJson as error:
        raise BadDataset(f"{path} cannot be read ({error}); expected JSON.") from error
    if not isinstance(info, dict) or not isinstance(info.get("labels"), dict):
        raise BadDataset(f'{path} has no \'labels\'; expected a table like {{"background": 0, "liver": 1}}.')
    for name, (kinds, what) in _KINDS.items():
        value = info.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise BadDataset(f"{path} has the {name} {json_text.shown(value)}; expected {what}.")
    return info


_KINDS = {
    "numTraining": (int, "a number of cases"),
    "dataset": (dict, "a table of images and label for each case"),
    "channel_names": (dict | list, 'a table of channel names like {"0": "T1", "1": "T2"}'),
    "modality": (dict | list, 'a table of channel names like {"0": "T1", "1": "T2"}'),
    **dict.fromkeys(("name", "licence", "license", "note", "file_ending"), (str, "a text")),
}


def _labels(folder: Path, info: dict[str, Any]) -> tuple[dict[str, int], tuple[int, ...], int | None]:
    """Class name -> index, value of each index in the files, value to ignore."""
    raw = info["labels"]
    where = folder / "dataset.json"
    try:
        if all(isinstance(key, str) and key.lstrip("-").isdigit() for key in raw):  # v1: {"0": "background"}
            table = {str(name): (int(value),) for value, name in raw.items()}
        else:
            table = {
                str(name): tuple(whole_number(v) for v in (value if isinstance(value, list) else [value]))
                for name, value in raw.items()
            }
    except (TypeError, ValueError, OverflowError) as error:
        raise BadDataset(f"{where} has labels that are not whole numbers; expected name: number.") from error
    for name in table:
        check_text(name, where, "label")
    alone = [values for values in table.values() if len(values) == 1]
    if len(table) < len(raw):
        raise BadDataset(f"{where} gives two labels the same name; make them differ.")
    if len(set(alone)) < len(alone):
        raise BadDataset(f"{where} gives two labels the same value; make them differ.")
    ignored = table.pop("ignore", None)
    ignore = ignored[0] if ignored else None
    names: dict[int, str] = {}
    for name, values in table.items():
        for value in values:
            alone = len(values) == 1
            names[value] = name if alone else f"{names[value]}+{name}" if value in names else name
    if len(set(names.values())) < len(names):  # a region of several values: tell them apart
        repeated = [name for name in names.values() if list(names.values()).count(name) > 1]
        names = {v: f"{n} ({v})" if n in repeated else n for v, n in names.items()}
    ordered = tuple(sorted(names))
    if ordered != tuple(range(len(ordered))) or len(ordered) < 2:
        raise BadDataset(
            f"{where} has the label values {list(ordered)}; expected 0 (background), 1, 2, ... without gaps."
        )
    return {names[value]: value for value in ordered}, ordered, ignore


def _channel_names(folder: Path, info: dict[str, Any]) -> tuple[str, ...]:
    table = info.get("channel_names") or info.get("modality") or {}
    try:
        in_order = sorted(table.items(), key=lambda item: int(item[0])) if isinstance(table, dict) else None
    except ValueError:
        in_order = [("", None)]
    names = table if in_order is None else [name for _, name in in_order]
    if not all(isinstance(name, str) for name in names):
        raise BadDataset(
            f'{folder / "dataset.json"} has channel names that are no table like {{"0": "T1", "1": "T2"}}.'
        )
    return tuple(check_text(name, folder / "dataset.json", "channel") for name in names)


def _guess_ending(images: Path) -> str:
    found = sorted(map(suffix_of, _image_files(images)))
    return found[0] if found else ".nii.gz"


def _found(
    folder: Path, info: dict[str, Any], ending: str, found: Findings
) -> dict[str, tuple[list[Path], Path]]:
    """Case -> channel files in order, label file; from the names in imagesTr."""
    images = folder / "imagesTr"
    if not images.is_dir():
        raise BadDataset(f"{folder} has a dataset.json but no folder imagesTr.")
    cases: dict[str, dict[int, Path]] = {}
    labels, without_number = folder / "labelsTr", []
    for path in sorted(images.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(ending.lower()):
            continue
        stem = path.name[: -len(ending)]
        match = _CHANNEL.fullmatch(stem)
        if (
            match
            and (labels / f"{stem}{ending}").is_file()
            and not (labels / f"{match['case']}{ending}").is_file()
        ):
            match = None  # "scan_0007" is a case of that name, as its label says, and not channel 7 of "scan"
        if match is None:
            without_number.append(path.name)
        case, channel = (match["case"], int(match["channel"])) if match else (stem, 0)
        first = cases.setdefault(case, {}).setdefault(channel, path)
        if first is not path:
            error = BadDataset(
                f"Case {shown(case)} in {images} has two files for channel 0 ({first.name}, {path.name}); remove one, "
                f"or rename them to NAME_0000{ending} with two names."
            )
            found.error("two formats", error, [case])
    if without_number and "channel_names" in info:  # the Decathlon has no such numbers
        found.note(
            "channel number",
            f"no channel number in the names of {counted(len(without_number), 'image')} in {images}, taken for channel "
            f"0: {named(without_number)}; nnU-Net wants NAME_0000{ending}, so rename them",
            without_number,
        )
    for case, channels in list(cases.items()):
        if sorted(channels) != list(range(len(channels))):
            error = BadDataset(
                f"Case {shown(case)} in {images} has the channels {sorted(channels)}; expected 0, 1, 2, ..."
            )
            found.error("channels", error, [case])
            del cases[case]
    return {c: ([files[i] for i in sorted(files)], labels / f"{c}{ending}") for c, files in cases.items()}


def _listed(folder: Path, info: dict[str, Any], found: Findings) -> dict[str, tuple[list[Path], Path]]:
    """The same from a "dataset" table (v2), whose paths are relative to the folder or absolute; else empty."""
    table = info.get("dataset")
    if not isinstance(table, dict):
        return {}
    files = {}
    for case, entry in table.items():
        try:
            paths = [*entry["images"], entry["label"]]
            if not all(isinstance(path, str) and "\0" not in path for path in paths):
                raise TypeError
        except (TypeError, KeyError):
            error = BadDataset(
                f"{folder / 'dataset.json'} has a 'dataset' table without images and label for each case "
                f"(see {shown(case)})."
            )
            found.error("name or path", error, [case])
            continue
        *images, label = (folder / path for path in paths)
        files[case] = (images, label)
    return files
