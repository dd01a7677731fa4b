"""`compress`: from a model or a run, and a few images, to a run directory that holds the whole smaller model."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medvfm_jax.adapters import NotMergeable
from medvfm_jax.adapters.option_values import parse_assignments
from medvfm_jax.compress.calibration import Calibration, OutOfRange
from medvfm_jax.compress.catalog import METHODS
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.data import NoExamples, PromptConfig, Split, load_example, make_loader
from medvfm_jax.data.findings import named
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.seen_cases import Seen, rows
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.settings.compress import CompressConfig
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.train.assemble import check_prompts
from medvfm_jax.train.base_model import Base, entry_of, load_base, spec_of
from medvfm_jax.train.stored_delta import SETTINGS, load_adapted
from medvfm_jax.train.training_data import SplitData, open_split, training_data
from medvfm_jax.types import Batch, MedvfmError
from medvfm_jax.weights import artifacts

KEPT = (
    "transform", "prompt", "classes", "labels", "input_shape", "preparation", "channel_names", "seed",
)  # fmt: skip


class AlreadyCompressed(MedvfmError, ValueError):
    """A run that is compressed already."""


class CompressResult(NamedTuple):
    """What `compress` leaves behind.

    Attributes:
        folder: run directory.
        delta: file with the whole model.
        bytes_before: of the model's parameters.
        bytes: of the file.
        change: of the logits on the first calibration image, as a share of their size (root of squares).
    """

    folder: Path
    delta: Path
    bytes_before: int
    bytes: int
    change: float


class _Opened(NamedTuple):
    """subject: to compress.  base: with its fingerprint.  said: what a delta says of the model.  record: of its run."""

    subject: Subject
    base: Base
    said: dict[str, Any]
    record: Mapping[str, Any] | None


def compress(config: CompressConfig, say: Callable[[str], None] = lambda text: None) -> CompressResult:
    """Compress a model as configured, into ``config.out``, which is written when everything has succeeded.

    Args:
        config: settings.
        say: told what is done, and both sizes.

    Returns:
        Where the model lies, how large it is and how far its outputs moved.

    Raises:
        MedvfmError: everything a user can cause: settings, data, weights, a model without what the method changes, a
            run that is compressed already or whose adapter cannot be merged, numbers that are not finite.
    """
    method = METHODS[config.method]
    options = method.configured(parse_assignments(config.set, "option=value, such as bits=4"))
    run_directory.refuse_existing(config.out, resume=None)
    with run_directory.locked(config.out):
        opened = _open(config)
        if config.run is not None and (config.run / run_directory.LARGEST).exists():
            say(
                f"note: the labels of which {config.run} keeps the largest component were chosen for its own masks "
                "and are not carried over; choose them anew with medvfm evaluate --split val --choose-largest --run "
                f"{config.out}"
            )
        source = _data(config, opened)
        batches = _batches(config, opened, source, say)
        task = opened.subject.model.spec.task
        objective = "samed" if task == "semantic" else "medsam"
        calibration = Calibration(batches, objective, config.seed, say, _foreign(opened, source))
        say(f"{config.method} on {opened.subject.name}, calibrated with {len(batches)} images")
        compressed = method.init(opened.subject, calibration, **options)
        change = _change(method, opened.subject, compressed, batches)
        return _write(config, method, options, opened, source, compressed, change, say)


def _open(config: CompressConfig) -> _Opened:
    if config.run is None:
        return _published(config)
    record = run_directory.finished(config.run)
    path = config.run / run_directory.DELTA
    if artifacts.COMPRESSION in artifacts.read_metadata(path):
        raise AlreadyCompressed(
            f"{config.run} is compressed already; give the run that it was made from, with the method you want."
        )
    if "rounds" in record:
        raise BadConfig(f"{config.run} is a federated run; compress takes runs of adapt and distill.")
    _check_settings_of_run(config, record)
    weights = config.weights or (record["weights"] and Path(record["weights"]))
    loaded = load_adapted(
        path, model=None, dtype=record["dtype"], file=weights, offline=config.offline, run=record
    )
    if loaded.base.model.spec.rank != 2:
        raise BadConfig(f"{config.run} sees volumes; compress takes models of pictures and slices.")
    try:
        params = loaded.adapted.merge(loaded.base.params, loaded.delta)
    except NotMergeable as error:
        raise BadConfig(
            f"The adapter of {config.run} cannot be merged into its model, so the model cannot be compressed with it: "
            f"{error}; compress a run with an adapter that can, such as lora or decoder."
        ) from error
    metadata = dict(loaded.metadata or {})
    said = {name: metadata[name] for name in KEPT if name in metadata}
    said |= {"base": metadata["base"], "preset": f"{metadata['preset']} + {config.method}"}
    subject = Subject(metadata["base"], loaded.base.model, _host(params))
    return _Opened(subject, loaded.base, said, record)


def _check_settings_of_run(config: CompressConfig, record: Mapping[str, Any]) -> None:
    """Raise BadConfig for what the run decides and was asked for otherwise; float32 is what nobody asked for."""
    trained = record["resolved"]["prompt"]
    if config.prompt not in ("auto", trained):
        what = "without prompts" if trained == "none" else f"with {trained} prompts"
        raise BadConfig(f"{config.run} was trained {what}, and is calibrated so; leave out --prompt.")
    if config.dtype not in ("float32", record["dtype"]):
        raise BadConfig(
            f"{config.run} computes in {record['dtype']}, and so it will once it is compressed; leave out --dtype."
        )


def _published(config: CompressConfig) -> _Opened:
    prompt = "box" if config.prompt == "auto" else config.prompt
    name = str(config.model)
    check_prompts(spec_of(name), prompt)
    if entry_of(name).start == "random" and config.weights is None:
        raise BadConfig(f"Model '{name}' starts from random weights; adapt it and give its --run.")
    base = load_base(
        name, classes=2, seed=config.seed, dtype=config.dtype, file=config.weights, offline=config.offline
    )
    if base.model.spec.task != "promptable" or prompt == "none":
        raise BadConfig(f"{name} without a delta gives no class labels: adapt it first and give its --run.")
    said = {
        "base": name, "preset": config.method, "seed": config.seed, "transform": None, "prompt": prompt,
        "classes": 2, "labels": {"background": 0, "object": 1}, "channel_names": [],
    }  # fmt: skip
    return _Opened(Subject(name, base.model, _host(base.params)), base, said, None)


def _foreign(opened: _Opened, source: SplitData) -> str:
    """Why the labels of the data are not the classes of a model without prompts, "" where they are."""
    ours, theirs = opened.said["labels"], source.dataset.labels
    if opened.subject.model.spec.task != "semantic" or dict(ours) == dict(theirs):
        return ""
    return (
        f"{opened.subject.name} was trained for the labels {', '.join(ours)}, and {source.dataset.name} has "
        f"{', '.join(theirs)}; give --data with its labels, or a method that looks at images alone."
    )


def _host(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf), params)


def _data(config: CompressConfig, opened: _Opened) -> SplitData:
    own = config.data is None
    record = opened.record
    found = open_split(
        record["resolved"]["data"] if own else config.data,
        seed=config.seed,
        val=config.val_fraction,
        test=config.test_fraction,
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch,
        follow_links=config.follow_links or (own and record.get("follow_links", False)),
        objects=config.objects or (own and record["resolved"].get("objects")) or None,
        given=record["resolved"]["split"] if own else None,
    )
    if record is None or record["resolved"].get("data_sha256") != found.sha256:
        return found
    # The run's own data, given again: another split would calibrate with its test cases.
    parts = record["resolved"]["split"]
    return found._replace(split=Split(**{name: tuple(cases) for name, cases in parts.items()}))


def _batches(
    config: CompressConfig, opened: _Opened, source: SplitData, say: Callable[[str], None]
) -> Sequence[Batch]:
    """One image each, evenly from the training part; raises BadConfig where that is empty or shows nothing."""
    spec, prompt = opened.subject.model.spec, opened.said["prompt"]
    if not source.split.train:
        raise BadConfig(
            f"The training part of {source.dataset.folder} is empty, so there is no image to calibrate with; give "
            "smaller --val-fraction and --test-fraction."
        )
    some = source._replace(split=source.split._replace(train=_cases(config, source), val=(), test=()))
    try:
        found = training_data(
            some, spec, prompt, config.reading(opened.subject.name, data=source.dataset.source)
        )
    except NoExamples as error:
        raise BadConfig(
            f"There is nothing to calibrate with in the training cases that were taken ({named(some.split.train)}); "
            f"give more --cases, or other --data: {error}"
        ) from error
    if not found.train:
        raise BadConfig(
            f"No training image of {source.dataset.folder} can be used to calibrate with; give other --data."
        )
    exact = found.prompts and PromptConfig(found.prompts.kind, found.prompts.count, jitter=0.0, centre=True)
    examples = [
        found.train[i] for i in np.unique(np.linspace(0, len(found.train) - 1, config.cases).astype(int))
    ]
    even = [e.id for e in examples if np.ptp(load_example(source.dataset, e).image, (0, 1)).max() == 0]
    if len(even) == len(examples):
        raise BadConfig(
            f"Every calibration image is of one even colour ({named(even)}), which shows nothing of what the model "
            "computes on pictures; give other --data."
        )
    if even:
        say(
            f"warning: of {len(examples)} calibration images {len(even)} are of one even colour: {named(even)}"
        )
    loader = make_loader(
        source.dataset, examples, spec, found.task,
        batch_size=1, seed=config.seed, prompts=exact, shuffle=False, epochs=1, threads=0,
    )  # fmt: skip
    return tuple(loader)


def _cases(config: CompressConfig, source: SplitData) -> tuple[str, ...]:
    """Cases that images are taken of, evenly from the training part."""
    train = source.split.train
    return tuple(
        train[i] for i in np.unique(np.linspace(0, len(train) - 1, config.cases).round().astype(int))
    )


def _change(
    method: ParamTransform, subject: Subject, compressed: Compressed, batches: Sequence[Batch]
) -> float:
    """How far the logits of the first calibration image move; raises OutOfRange if they are not finite.

    The compressed model gets NaN for all parameters of its own, so that none of them can be read unnoticed.
    """
    adapted = method.apply(compressed, subject.model)
    seen = jax.tree.map(lambda leaf: leaf[0], (batches[0].image, batches[0].prompts))
    nothing = jax.tree.map(
        lambda leaf: np.broadcast_to(np.array(np.nan, leaf.dtype), leaf.shape), subject.params
    )
    before = jax.jit(lambda p, x: subject.model.apply(p, *x).logits)(subject.params, seen)
    after = jax.jit(lambda p, d, x: adapted.apply(p, d, *x).logits)(nothing, compressed.delta, seen)
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not np.isfinite(after).all():
        raise OutOfRange(
            f"{subject.name} gives numbers that are not finite once it is compressed; its weights are damaged, or a "
            "part of it is of a kind that the method does not know."
        )
    return float(np.linalg.norm(after - before) / max(np.linalg.norm(before), np.finfo(float).tiny))


def _write(
    config: CompressConfig,
    method: ParamTransform,
    options: Mapping[str, Any],
    opened: _Opened,
    source: SplitData,
    compressed: Compressed,
    change: float,
    say: Callable[[str], None],
) -> CompressResult:
    before = sum(leaf.nbytes for leaf in jax.tree.leaves(opened.subject.params))
    adapter = {**compressed.adapter, "preset": opened.said["preset"]}
    about = {
        "method": config.method,
        "options": {**method.options(), **options},
        **compressed.facts,
    }
    record = _record(config, opened, source, adapter, about)
    said = {
        **opened.said,
        "fingerprint": opened.base.fingerprint,
        "adapter": adapter,
        artifacts.COMPRESSION: about,
        SETTINGS: settings_digest(record),
    }
    path = config.out / run_directory.DELTA
    try:
        artifacts.save_delta(path, compressed.delta, said)
        run_directory.write_json(config.out / run_directory.CONFIG, record)
    except BaseException:  # a signal too: half a run is none
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    after = path.stat().st_size
    facts = ", ".join(f"{name} {value}" for name, value in compressed.facts.items())
    say(f"{facts}; logits of a calibration image move by {100 * change:.2f} %")
    say(f"{before:,} bytes before, {after:,} after: {100 * after / before:.1f} %")
    return CompressResult(config.out, path, before, after, change)


def _record(
    config: CompressConfig,
    opened: _Opened,
    source: SplitData,
    adapter: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """``config.json``: that of the run that was compressed, or ours in its form."""
    resolved = {
        "data": source.dataset.source,
        "data_sha256": source.sha256,
        "split": source.split_record(),
        **{name: opened.said[name] for name in ("prompt", "transform", "classes", "labels")},
    }
    ours = to_json(config)
    if opened.record is None:
        record = {**ours, "adapter": config.method, "seed": opened.said["seed"]}
    else:
        resolved = dict(opened.record["resolved"])
        record = {
            **opened.record,
            "adapter": opened.said["preset"],
            "method": config.method,
            "set": ours["set"],
        }
        record |= {"run": ours["run"], "cases": config.cases}
        # Of data that are not the run's, `split` does not tell that the model has seen them.
        resolved["calibration"] = rows([Seen(source.sha256, frozenset(_cases(config, source)))])
    record["model"] = opened.said["base"]
    record["weights"] = None  # the file holds the whole model
    record["resolved"] = {
        **resolved,
        "adapter": dict(adapter),
        "fingerprint": opened.base.fingerprint,
        artifacts.COMPRESSION: dict(about),
    }
    return record
