"""Everything that could go wrong with a dataset later, found before any work: every case of every split."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax.data import check_cache
from medvfm_jax.data.case_notes import line_of
from medvfm_jax.data.findings import Finding, named
from medvfm_jax.data.inspection import CaseFacts, inspect_case
from medvfm_jax.data.mask_values import UNCLEAR_MASKS
from medvfm_jax.data.names import shown
from medvfm_jax.data.objects import MANY_PIECES, objects_of
from medvfm_jax.data.records import BadDataset, Dataset
from medvfm_jax.data.splits import Split
from medvfm_jax.images.budget import budget
from medvfm_jax.printable import counted

ABOUT_PROMPTS = ("many pieces", "objects")  # kinds relevant only where prompts are simulated
MANY_CHANNELS = "many channels"  # kind irrelevant to models that see every channel
_SEEN = 3  # channels of models of pictures and slices
_OUTLIER = 2.0  # a spacing this many times larger or smaller than the median of the dataset

_MOST_THREADS = 8

Track = Callable[[Sequence[Future]], Iterable[Future]]


class DatasetCheck(NamedTuple):
    """facts: what was found in each case that was looked at. findings: errors first, in the order of cases."""

    facts: Mapping[str, CaseFacts]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop the work."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def notes(self) -> list[Finding]:
        """Findings that stop nothing."""
        return [finding for finding in self.findings if finding.severity == "note"]

    def bad_cases(self) -> dict[str, str]:
        """{case: why it cannot be used}, the first problem of each."""
        return {case: facts.problems[0].message for case, facts in self.facts.items() if facts.problems}

    def record(self) -> dict[str, Any]:
        """As a run keeps it: how many cases were read, and what was found."""
        return {"cases": len(self.facts), "findings": [finding.record() for finding in self.findings]}


def check_dataset(
    dataset: Dataset,
    split: Split | None = None,
    cases: Sequence[str] | None = None,
    *,
    track: Track = iter,
    say: Callable[[str], None] = lambda text: None,
    cached: bool = True,
) -> DatasetCheck:
    """Read and check cases (default: all), and compare them with each other.

    split: who is for what; tells duplicates across its parts, and cases in none of them. track: shows progress.
    say: told about a damaged cache. What is found is kept in the cache directory, by sizes and times of files and the
    limit of memory, except where a file could not be read. cached: trust what earlier checks found.
    """
    names = sorted(dataset.by_id) if cases is None else list(cases)
    facts = _inspect(dataset, names, track, say, cached)
    unclear = has_unclear_masks(dataset.findings)
    findings = [
        *dataset.findings,
        *_of_cases(dataset, facts, unclear),
        *_in_no_part(dataset, split),
        *_between(dataset, facts, split),
        *([] if unclear else [*_labels(dataset, facts), *_pieces(dataset, facts), *_objects(facts)]),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")  # stable
    return DatasetCheck(facts, tuple(findings))


def has_unclear_masks(findings: Iterable[Finding]) -> bool:
    """Whether the meaning of the numbers in the masks is undeclared, so that nothing can be said about labels."""
    return any(finding.kind == UNCLEAR_MASKS and finding.severity == "error" for finding in findings)


def _inspect(
    dataset: Dataset, names: Sequence[str], track: Track, say: Callable[[str], None], cached: bool
) -> dict[str, CaseFacts]:
    path = check_cache.cache_file(
        "cases", str(dataset.folder.resolve()), sorted(dataset.labels.items()), dataset.values, dataset.ignore,
        dataset.dimension, dataset.channel_names, dataset.allow_geometry_mismatch, budget(),
    )  # fmt: skip
    known = check_cache.load(path, CaseFacts.of, say) if cached else {}
    keys = {case.id: check_cache.key_of(*case.images, case.label, case.instances) for case in dataset.cases}
    missing = [name for name in names if keys[name] not in known]
    found = {name: known[keys[name]] for name in names if keys[name] in known}
    if missing:
        # Decompression and arithmetic on arrays leave the interpreter free, so threads are enough.
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            waiting = {pool.submit(inspect_case, dataset, dataset.case(name)): name for name in missing}
            try:
                for future in track(list(waiting)):
                    found[waiting[future]] = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        kept = {key: known[key] for key in keys.values() if key in known}
        kept |= {keys[name]: found[name] for name in missing if keys[name] and found[name].lasting}
        check_cache.store(path, {key: facts.record() for key, facts in kept.items()})
    return {name: found[name] for name in names}


def _of_cases(dataset: Dataset, facts: Mapping[str, CaseFacts], unclear: bool) -> list[Finding]:
    """Each problem of each case, and the notes about single cases together; ``unclear``: without those on labels."""
    errors = [
        Finding(problem.kind, "error", problem.message, (case,))
        for case, found in facts.items()
        for problem in found.problems
    ]
    constant = [case for case, found in facts.items() if found.grid and found.low == found.high]
    bare = {case: found for case, found in facts.items() if found.pixels and not any(found.pixels[1:])}
    empty = [case for case, found in bare.items() if not found.unlabelled]
    unlabelled = [case for case, found in bare.items() if found.unlabelled]
    notes = []
    if constant:
        message = f"the same value everywhere in {counted(len(constant), 'image')}: {named(constant)}"
        notes.append(Finding("constant image", "note", message, tuple(constant)))
    if empty and not unclear:
        message = f"nothing but background in {len(empty)} of {len(facts)} label maps: {named(empty)}"
        notes.append(Finding("empty label", "note", message, tuple(empty)))
    if unlabelled and not unclear:
        notes.append(_only_unlabelled(dataset, facts, unlabelled))
    read: dict[str, dict[str, float]] = defaultdict(dict)
    for case, found in facts.items():
        for note, displacement in found.notes:
            read[note][case] = displacement
    for note, cases in sorted(read.items()):
        notes.append(Finding("reading", "note", line_of(note, cases), tuple(cases)))
    return errors + notes


def _only_unlabelled(dataset: Dataset, facts: Mapping[str, CaseFacts], unlabelled: Sequence[str]) -> Finding:
    """Label maps that may follow another convention, with the number for "not labelled" where others have classes."""
    others = sum(any(found.pixels[1:]) for found in facts.values())
    number = dataset.ignore
    message = (
        f"no class, and {number}, which means not labelled, in {len(unlabelled)} of {len(facts)} label maps: "
        f"{named(unlabelled)}; {others or 'no'} others have classes. If {number} "
        "stands for a class there, two conventions are mixed: nothing is learnt from these pixels and nothing scored; "
        "write those files anew"
    )
    return Finding(UNCLEAR_MASKS, "note", message, tuple(unlabelled))


def _in_no_part(dataset: Dataset, split: Split | None) -> list[Finding]:
    """Cases that ``splits_final.json``, or a limit on training cases, leaves out."""
    unused = sorted(set(dataset.by_id) - set().union(*split)) if split is not None else []
    if not unused:
        return []
    message = (
        f"in no part of the split: {len(unused)} of {counted(len(dataset.cases), 'case')}: {named(unused)}"
    )
    return [Finding("split", "note", message, tuple(unused))]


def _between(dataset: Dataset, facts: Mapping[str, CaseFacts], split: Split | None) -> list[Finding]:
    """What only a comparison of cases shows."""
    return [
        *_duplicates(dataset, facts, split), *_patients(dataset), *_names(dataset), *_spacings(facts),
        *_channels(facts), *_many_channels(dataset, facts),
    ]  # fmt: skip


def _duplicates(dataset: Dataset, facts: Mapping[str, CaseFacts], split: Split | None) -> list[Finding]:
    same: dict[str, list[str]] = defaultdict(list)
    for case, found in facts.items():
        if found.digest:
            same[found.digest].append(case)
    groups = [group for group in same.values() if len(group) > 1]
    part = {case: name for name, cases in (split._asdict() if split else {}).items() for case in cases}
    across = [group for group in groups if len({part[case] for case in group if case in part}) > 1]
    within = [group for group in groups if group not in across]
    findings = []
    for chosen, text in ((across, "in different parts of the split, so the test is no test"), (within, "")):
        for group in chosen:
            words = [f"{shown(case)}{f' ({part[case]})' if case in part else ''}" for case in group[:4]]
            more = f" and {len(group) - 4} more" if len(group) > 4 else ""
            message = (
                f"the same image {len(group)} times{', ' + text if text else ''}: {', '.join(words)}{more}"
            )
            findings.append(Finding("duplicate image", "note", message, tuple(group)))
    return findings


def _patients(dataset: Dataset) -> list[Finding]:
    sites: dict[str, set[str]] = defaultdict(set)
    for case in dataset.cases:
        sites[case.patient].add(case.site)
    several = sorted(patient for patient, found in sites.items() if len(found) > 1)
    if not several:
        return []
    message = (
        f"at several sites, counting for the first: {counted(len(several), 'patient')}: {named(several)}"
    )
    return [Finding("patient at several sites", "note", message, tuple(several))]


def _names(dataset: Dataset) -> list[Finding]:
    same: dict[str, list[str]] = defaultdict(list)
    for case in dataset.by_id:
        same[case.casefold()].append(case)
    alike = [case for group in same.values() if len(group) > 1 for case in group]
    if not alike:
        return []
    message = f"{len(alike)} names differ in upper and lower case alone, which some disks take for one: {named(alike)}"
    return [Finding("name", "note", message, tuple(alike))]


def _spacings(facts: Mapping[str, CaseFacts]) -> list[Finding]:
    known = {case: found.spacing for case, found in facts.items() if found.spacing is not None}
    if len(known) < 3 or len({len(spacing) for spacing in known.values()}) > 1:
        return []
    ordered = {case: sorted(spacing) for case, spacing in known.items()}  # whatever the order of the axes
    median = np.median(list(ordered.values()), axis=0)
    far = [c for c, s in ordered.items() if (np.maximum(s / median, median / s) > _OUTLIER).any()]
    if not far:
        return []
    middle = " × ".join(f"{value:.3g}" for value in median)
    shown_ = " × ".join(f"{value:.3g}" for value in known[far[0]])
    message = (
        f"spacing more than {_OUTLIER:g} times off the median of {middle} mm in {counted(len(far), 'case')}: "
        f"{named(far)} ({shown_} mm)"
    )
    return [Finding("spacing outlier", "note", message, tuple(far))]


def _channels(facts: Mapping[str, CaseFacts]) -> list[Finding]:
    counts: dict[int, list[str]] = defaultdict(list)
    for case, found in facts.items():
        if found.grid:
            counts[found.channels].append(case)
    if len(counts) < 2:
        return []
    usual = max(counts, key=lambda count: len(counts[count]))
    others = sorted(case for count, cases in counts.items() if count != usual for case in cases)
    words = ", ".join(
        f"{counted(len(cases), 'image')} with {count}" for count, cases in sorted(counts.items())
    )
    return [
        Finding(
            "channels", "note", f"the number of channels differs: {words} ({named(others)})", tuple(others)
        )
    ]


def _many_channels(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """Images with channels that models of pictures and slices never see: `images.frame.three_channels`."""
    cases = sorted(case for case, found in facts.items() if found.channels > _SEEN)
    if not cases:
        return []
    unseen = dataset.channel_names[_SEEN:]
    message = (
        f"more than three channels in {counted(len(cases), 'image')}: {named(cases)}; models of pictures and slices "
        f"see the first three{f', so nothing of {named(unseen)}' if unseen else ''}, models of patches all"
    )
    return [Finding(MANY_CHANNELS, "note", message, tuple(cases))]


def _labels(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    known = [found.pixels for found in facts.values() if found.pixels]
    if not known:
        return []
    total = np.sum(known, axis=0)
    never = [name for name, index in dataset.labels.items() if index and total[index] == 0]
    message = f"never occurring: {counted(len(never), 'label')}: {named(never)}"
    return [Finding("label never occurs", "note", message)] if never else []


def _pieces(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    try:
        how = objects_of(dataset)
    except BadDataset as error:
        return [Finding("objects", "note", f"prompts cannot be simulated: {error}")]
    if how != "labels":
        return []
    kind = "picture" if dataset.dimension == 2 else "slice"
    findings = []
    for name, index in dataset.labels.items():
        counts = [
            f.pieces[index - 1] for f in facts.values() if index and f.pieces and f.pieces[index - 1] > 0
        ]
        if counts and np.mean(counts) > MANY_PIECES:
            message = (
                f"{name} falls into {np.mean(counts):.3g} pieces per {kind} and one box is drawn around all of them; "
                "--objects components draws one around each"
            )
            findings.append(Finding("many pieces", "note", message))
    return findings


def _objects(facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """Where instance maps and label maps differ: training and scores of classes follow the label maps."""
    found = {case: f.agreement for case, f in facts.items() if f.agreement is not None}
    outside = {case: a for case, a in found.items() if a.outside}
    uncovered = {case: a for case, a in found.items() if a.uncovered}
    several = {case: a for case, a in found.items() if a.several}
    findings = []

    def note(kind: str, message: str, cases: Mapping[str, Any]) -> None:
        message = f"{message}, in {counted(len(cases), 'case')}: {named(list(cases))}"
        findings.append(Finding(kind, "note", message, tuple(cases)))

    if outside:
        pixels, lost = (sum(getattr(a, name) for a in outside.values()) for name in ("outside", "lost"))
        wholly = f"; {counted(lost, 'object')} wholly, so no prompt is about {'it' if lost == 1 else 'them'}"
        message = (
            f"{counted(pixels, 'pixel')} of objects in instances/ are background in masks/ and taken as such"
        )
        note("instances outside masks", message + (wholly if lost else ""), outside)
    if uncovered:
        pixels = counted(sum(a.uncovered for a in uncovered.values()), "pixel")
        message = (
            f"{pixels} of classes in masks/ belong to no object in instances/, so no prompt is about them"
        )
        note("masks without instances", message, uncovered)
    if several:
        objects = counted(sum(a.several for a in several.values()), "object")
        note(
            "instances in several classes",
            f"{objects} in instances/ with pixels of several classes in masks/",
            several,
        )
    return findings
