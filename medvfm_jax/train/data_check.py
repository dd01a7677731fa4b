"""The check of a dataset before a run: what is odd is said and recorded, a bad case stops the run or is skipped."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from medvfm_jax.data import BadCase
from medvfm_jax.data.check import ABOUT_PROMPTS, MANY_CHANNELS, DatasetCheck, check_dataset
from medvfm_jax.data.examples import check_volumes
from medvfm_jax.data.findings import Finding, named
from medvfm_jax.data.inspection import CaseFacts
from medvfm_jax.data.objects import objects_of
from medvfm_jax.data.records import Dataset
from medvfm_jax.images.geometry import widest_axis
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation, slices_first
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.slab import MOST_SLICES
from medvfm_jax.printable import counted
from medvfm_jax.settings.groups import VolumeConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.systems import System
from medvfm_jax.systems.features import for_features
from medvfm_jax.train.seen_at_once import slab_depth, with_depth
from medvfm_jax.train.training_data import SplitData
from medvfm_jax.types import ModelSpec

Track = Callable[[Sequence[Any], str], Iterable[Any]]


def check_split(
    source: SplitData, *, skip_bad: bool, track: Track, say: Callable[[str], None]
) -> DatasetCheck:
    """Read every case of every part of the split, the test too. Raises BadCase unless bad cases may be skipped."""
    names = sorted({case for cases in source.split for case in cases})
    found = check_dataset(
        source.dataset, source.split, names, track=lambda items: track(items, "check"), say=say
    )
    refuse_bad(found, source.dataset, skip_bad)
    return found


def slab_of(config: VolumeConfig, entry: ModelEntry, name: str, system: System) -> int | None:
    """Slices of the slabs that a model of slices sees with a system, None where it sees one at a time.

    name: of the system.  Raises BadConfig for slices asked of a system that makes no slabs.
    """
    system = for_features(system) if entry.spec.task == "features" else system
    change = with_depth(system.transform(entry.spec, system.prompts, 2), name, slab_depth(config))
    return None if change is None or change["kind"] != "slab" else int(change["depth"])


def check_synthesis(share: float, config: VolumeConfig, entry: ModelEntry, name: str, system: System) -> None:
    """Raise BadConfig where objects of other examples are asked for, a ``share`` above 0, and volumes are seen."""
    if share and (entry.spec.rank == 3 or slab_of(config, entry, name, system)):
        raise BadConfig(
            f"Objects of other cases are laid into pictures and slices, and model '{entry.spec.name}' with {name} sees "
            "several slices at once; leave out --synthesis."
        )


def check_dimensions(
    found: DatasetCheck, dataset: Dataset, config: VolumeConfig, entry: ModelEntry, name: str, system: System
) -> None:
    """Refuse data of other dimensions than a model sees with a system, from what is known before it is built.

    found: what ``check_split`` gave.  name: of the system.
    Raises NoExamples for pictures where slabs or patches are wanted, BadCase for a volume with fewer slices than a
    slab, and BadConfig for slices asked of a system that makes no slabs.
    """
    if entry.spec.rank == 3:  # its window is checked where it is built
        check_volumes(dataset, entry.spec.name, entry.spec.input_shape[0])
        return
    depth = slab_of(config, entry, name, system)
    if depth is None:
        return
    check_volumes(dataset, f"{entry.spec.name} with {name}", depth)
    slices = {
        case: _slices_first(facts, AS_THEY_ARE)[0]
        for case, facts in sorted(found.facts.items())
        if facts.grid is not None
    }
    small = [case for case, n in slices.items() if n < depth <= MOST_SLICES]
    if small:
        image, least = dataset.case(small[0]).images[0], min(slices.values())
        more = f" ({counted(len(small), 'such volume')})" if len(small) > 1 else ""
        raise BadCase(
            f"{image} has {counted(slices[small[0]], 'slice')}, and {name} sees slabs of {depth}{more}; use --window "
            f"{least}, or take such volumes out of the data."
        )


def about(
    found: DatasetCheck, prompt: str, spec: ModelSpec, preparation: Preparation = AS_THEY_ARE
) -> DatasetCheck:
    """What concerns a run of this model with these prompts.

    Without any, nothing about what prompts would be drawn around; of a model that sees every channel nothing about
    those that others do not see. Volumes that are smaller than its window are noted.
    """
    left_out = list(ABOUT_PROMPTS) if prompt == "none" else []
    if all(facts.channels <= spec.input_shape[-1] for facts in found.facts.values()):
        left_out.append(MANY_CHANNELS)
    findings = tuple(f for f in found.findings if f.kind not in left_out)
    return found._replace(findings=(*findings, *_smaller_than_the_window(found, spec, preparation)))


def _smaller_than_the_window(found: DatasetCheck, spec: ModelSpec, preparation: Preparation) -> list[Finding]:
    """Volumes that are filled up with zeros, because the model sees more slices, or a larger patch, at once."""
    if spec.rank == 2:
        return []
    window = spec.input_shape[:3] if spec.resize == "none" else spec.input_shape[:1]
    shapes = {case: _slices_first(facts, preparation) for case, facts in sorted(found.facts.items())}
    small = [
        case for case, shape in shapes.items() if any(n < w for n, w in zip(shape, window, strict=False))
    ]
    if not small:
        return []
    what = " x ".join(map(str, window)) + (" voxels" if len(window) == 3 else " slices")
    message = (
        f"smaller than the window of {what}, so filled up with zeros: {counted(len(small), 'volume')}: "
        f"{named(small)}; --window takes a smaller one in training"
    )
    return [Finding("window", "note", message, tuple(small))]


def _slices_first(facts: CaseFacts, preparation: Preparation) -> tuple[int, ...]:
    """(D, H, W) of a volume, as ``images.pile`` puts it, after resampling if its voxels have a size."""
    if facts.grid is None or len(facts.grid) != 3:
        return ()
    axis = widest_axis(facts.spacing)
    shape = slices_first(facts.grid, axis)
    return shape if facts.spacing is None else preparation.grid(shape, facts.spacing, axis, "")


def refuse_bad(found: DatasetCheck, dataset: Dataset, skip_bad: bool) -> None:
    """Raise BadCase with the first problem and the number of others, unless bad cases may be skipped."""
    errors = found.errors
    if not errors or skip_bad:
        return
    first = errors[0].message
    if len(errors) > 1:
        rest = f"{len(errors) - 1} more problem{'s' if len(errors) > 2 else ''}"
        first = f"{first.rstrip('.')}; {rest}: medvfm check --data {dataset.folder} names all."
    raise BadCase(first)


def lines(found: DatasetCheck, split: Any = None) -> list[str]:
    """What the user is told at the start of a run: each note, and each case that is skipped."""
    part = {case: name for name, cases in (split._asdict() if split else {}).items() for case in cases}
    skipped = [
        f"skipped{f' ({part[case]})' if case in part else ''}: {why}"
        for case, why in found.bad_cases().items()
    ]
    return [f"note: {note.message}" for note in found.notes] + skipped


def recorded_objects(dataset: Dataset, prompt: str) -> str | None:
    """What prompts are about, for the record of a run; None where there are none, and for instances.

    Runs made before there was a choice have no such entry, and used instances wherever there were any.
    """
    how = None if prompt == "none" else objects_of(dataset)
    return None if how == "instances" else how
