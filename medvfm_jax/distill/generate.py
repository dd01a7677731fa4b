"""`generate`: a data folder whose pictures are made from a model alone, for distillation without data."""

import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvfm_jax.adapters import tap
from medvfm_jax.data import PromptConfig, make_loader, open_dataset
from medvfm_jax.data.examples import examples
from medvfm_jax.distill.inversion import (
    NotInvertible,
    as_input,
    batch_norms,
    draw_objects,
    likeness,
    moments,
    statistics_loss,
    total_variation,
)
from medvfm_jax.distill.teacher import Teacher, is_compressed, open_teacher, prompt_of
from medvfm_jax.images.writing import write_atomically
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.provenance import versions
from medvfm_jax.settings.generate import GenerateConfig
from medvfm_jax.settings.records import to_json
from medvfm_jax.train.task import prediction_loss
from medvfm_jax.types import Batch

LABELS = {"background": 0, "object": 1}  # of a teacher that was not trained for labels


class GenerateResult(NamedTuple):
    """What `generate` leaves behind.

    Attributes:
        folder: data folder.
        images: pictures in it.
        before: mean loss of the noise that they started from, None where nothing was left to do.
        after: mean loss of the pictures.
    """

    folder: Path
    images: int
    before: float | None
    after: float | None


def generate(config: GenerateConfig, display: ProgressDisplay | None = None) -> GenerateResult:
    """Make pictures in which a teacher finds what was drawn, and whose maps have the statistics of its training.

    Args:
        config: settings.
        display: shows progress; None draws on stderr.

    Returns:
        Where the data folder is.

    Raises:
        NotInvertible: a compressed teacher, a model of volumes, a loss that is not finite.
        MedvfmError: everything else a user can cause: settings, weights, a folder in use, a full disk.

    References:
        https://arxiv.org/abs/1912.08795 (DeepInversion)
        https://arxiv.org/abs/2204.12997 (DearKD)
    """
    display = display or ProgressDisplay()
    if is_compressed(config.teacher):
        raise NotInvertible(
            f"{config.teacher} is compressed: the numbers of its batch norms are not in its file; give the run that it "
            "was made from."
        )
    prompt = prompt_of(config.teacher)
    run_directory.refuse_existing(config.out, config.resume)
    with run_directory.locked(config.out):
        teacher = open_teacher(
            config.teacher, dtype=config.dtype, weights=config.teacher_weights, offline=config.offline
        )
        _check(teacher)
        labels = dict(teacher.labels or LABELS)
        record = to_json(config)
        record["resolved"] = {
            "teacher": {"model": teacher.name, "fingerprint": teacher.fingerprint},
            "labels": labels,
            "prompt": prompt,
            "size": teacher.spec.input_shape[0],
        }
        continued = run_directory.claim(config.out, record, config.resume)
        batches, missing = _draw(config, labels, teacher.spec.input_shape[0])
        norms, uncalled = _norms(teacher)
        display.say(
            f"{config.images} pictures of {teacher.spec.input_shape[0]} pixels from {config.teacher}, after its answers"
            f" to {prompt if prompt != 'none' else 'no'} prompts and the statistics of {len(norms)} batch norms"
        )
        if uncalled:
            display.say(
                f"note: {uncalled} more are within branches that run as one product, and have no maps to compare"
            )
        if not norms and config.statistics:
            display.say(f"note: {teacher.name} has no batch norms, so that pictures follow its answers alone")
        if continued:
            again = sum(map(len, batches)) - missing
            display.say(
                f"{config.images - missing} of {config.images} pictures are there already"
                + (
                    f"; {again} of them are made again, to the bit, with those missing from their batch"
                    if again
                    else ""
                )
            )
        found = _make(config, teacher, prompt, norms, batches, display)
        run_directory.write_json(
            config.out / "generated.json",
            {"teacher": config.teacher, **record["resolved"], "versions": versions()},
        )
    before, after = ([end[i] for end in found] for i in (0, 1))
    if found:
        display.say(f"loss {np.mean(before):.3f} for noise, {np.mean(after):.3f} for the pictures")
    mean = (float(np.mean(before)), float(np.mean(after))) if found else (None, None)
    return GenerateResult(config.out, config.images, *mean)


def _check(teacher: Teacher) -> None:
    """Raise NotInvertible for a model that pictures cannot be made from."""
    spec = teacher.spec
    if spec.rank != 2:
        raise NotInvertible(f"{teacher.name} sees volumes; generate makes pictures, for models of pictures.")
    if spec.distance_map:
        raise NotInvertible(
            f"{teacher.name} was trained for a distance map, which drawn objects have none of; give another teacher."
        )
    as_input(spec, jnp.zeros((1, 1, 1, 3)))  # refuses another scaling


def _norms(teacher: Teacher) -> tuple[dict[str, Any], int]:
    """The batch norms that the encoder calls, and how many others it has: those of branches that are fused."""
    every = batch_norms(teacher.merged)
    if not every:
        return {}, 0
    image = jax.ShapeDtypeStruct(teacher.spec.input_shape, jnp.float32)
    _, maps = jax.eval_shape(tap(teacher.encode, "|".join(map(re.escape, every))), teacher.params, image)
    called = {path: arrays for path, arrays in every.items() if path in maps}
    return called, len(every) - len(called)


def _name(number: int) -> str:
    return f"generated_{number:05d}.png"


def _draw(config: GenerateConfig, labels: Mapping[str, int], size: int) -> tuple[list[tuple[int, ...]], int]:
    """Write what every picture is to show, before any is made; the batches that miss a picture, and how many miss.

    A folder with label maps whose pictures are missing is refused by every command, so that it is not mistaken for one
    that is complete.
    """
    text = json.dumps(dict(labels), indent=1)
    write_atomically(config.out / "labels.json", text.encode())
    classes = [number for number in labels.values() if number]
    for number in range(config.images):
        rng = np.random.default_rng([config.seed, number])
        shown, objects = draw_objects(rng, size, config.ellipses, classes)
        _write(config.out / "masks" / _name(number), shown)
        _write(config.out / "instances" / _name(number), objects)
    every = [
        tuple(range(first, min(first + config.batch_size, config.images)))
        for first in range(0, config.images, config.batch_size)
    ]
    there = {n for n in range(config.images) if (config.out / "images" / _name(n)).exists()}
    return [batch for batch in every if not there.issuperset(batch)], config.images - len(there)


def _write(path: Path, picture: NDArray) -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _make(
    config: GenerateConfig,
    teacher: Teacher,
    prompt: str,
    norms: Mapping[str, Any],
    batches: list[tuple[int, ...]],
    display: ProgressDisplay,
) -> list[tuple[float, float]]:
    """Make and write the pictures of each batch; the losses of their noise and of themselves."""
    optimizer = optax.adam(config.learning_rate)
    look, judge = _look(teacher, norms), jax.jit(jax.value_and_grad(_judge(config, norms), has_aux=True))
    size = teacher.spec.input_shape[0]
    seen = jax.jit(look)

    @jax.jit
    def gradient(noise: Array, params: Any, asked: Any, of_seen: Any) -> Array:
        return jax.vjp(lambda x: look(x, params, asked), noise)[1](of_seen)[0]

    @jax.jit
    def moved(noise: Array, state: Any, gradients: Array) -> tuple[Array, Any]:
        change, state = optimizer.update(gradients, state)
        return optax.apply_updates(noise, change), state

    def looked_at(params: Any, noise: Array, asked: Batch) -> tuple[list[Any], Any]:
        """What is asked of each picture, and what is seen in all."""
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], asked[1:]) for i in range(len(noise))]
        found = [seen(x, params, asked) for x, asked in zip(noise, each)]
        return each, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def told_of(params: Any, noise: Array, asked: Batch) -> dict[str, Array]:
        return judge(looked_at(params, noise, asked)[1])[0][1]

    def step(params: Any, noise: Array, state: Any, asked: Batch) -> tuple[Array, Any, dict[str, Array]]:
        """One picture at a time, which takes the memory of one: first what is seen in each, then its gradient."""
        each, all_seen = looked_at(params, noise, asked)
        (_, told), of_seen = judge(all_seen)
        gradients = [
            gradient(x, params, asked, jax.tree.map(lambda leaf, i=i: leaf[i], of_seen))
            for i, (x, asked) in enumerate(zip(noise, each))
        ]
        return *moved(noise, state, jnp.stack(gradients)), told

    ends, asked, noise, state, first = [], None, None, None, 0.0
    params = jax.device_put(teacher.params)
    steps = [(batch, at) for batch in batches for at in range(config.steps)]
    for batch, at in display.track(steps, "generate"):
        if at == 0:
            asked = _asked(config, teacher, prompt, batch)
            start = [
                np.random.default_rng([config.seed, n, 1]).standard_normal((size, size, 3)) for n in batch
            ]
            noise = jnp.asarray(np.stack(start), jnp.float32)
            state = optimizer.init(noise)
        noise, state, told = step(params, noise, state, asked)
        if at == 0:
            first = float(told["loss"])
        if at == config.steps - 1:
            found = {name: float(value) for name, value in told_of(params, noise, asked).items()}
            if not np.isfinite(found["loss"]):
                raise NotInvertible(
                    f"The loss of pictures {batch[0]} to {batch[-1]} is not finite; give a smaller --learning-rate."
                )
            for number, unit in zip(batch, np.asarray(jax.nn.sigmoid(noise))):
                _write(config.out / "images" / _name(number), (unit * 255).round().astype(np.uint8))
            run_directory.append_metrics(config.out, {"first": batch[0], "last": batch[-1], **found})
            ends.append((first, found["loss"]))
    return ends


def _asked(config: GenerateConfig, teacher: Teacher, prompt: str, batch: tuple[int, ...]) -> Batch:
    """Prompts and targets of what the pictures are to show, as training makes them of a data folder."""
    spec = teacher.spec
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_atomically(folder / "labels.json", (config.out / "labels.json").read_bytes())
        for number in batch:
            for part in ("masks", "instances"):
                drawn = config.out / part / _name(number)
                write_atomically(folder / part / _name(number), drawn.read_bytes())
            _write(folder / "images" / _name(number), np.zeros((*spec.input_shape[:2], 3), np.uint8))
        dataset = open_dataset(folder)
        task = "semantic" if prompt == "none" else "promptable"
        found = examples(dataset, [case.id for case in dataset.cases], spec, task)
        exact = None if prompt == "none" else PromptConfig(prompt, config.ellipses, jitter=0.0, centre=True)
        loader = make_loader(
            dataset, found, spec, task,
            batch_size=len(batch), seed=config.seed, prompts=exact, shuffle=False, epochs=1, threads=0,
        )  # fmt: skip
        return next(iter(loader))


def _look(teacher: Teacher, norms: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """(logits of grey values (S, S, 3), the teacher's numbers, what is asked of the picture) -> what counts of it."""
    rate = prediction_loss("samed" if teacher.spec.task == "semantic" else "medsam")
    pattern = "|".join(map(re.escape, norms))
    encode = tap(teacher.encode, pattern) if norms else lambda p, x: (teacher.encode(p, x), {})

    def look(noise: Array, params: Any, asked: Any) -> dict[str, Any]:
        unit, (prompts, target, weight, _) = jax.nn.sigmoid(noise), asked
        embedding, maps = encode(params, as_input(teacher.spec, unit))
        answers, _ = rate(teacher.decode(params, embedding, prompts), target, weight)
        return {
            "smoothness": total_variation(unit),
            "answers": answers,
            "embedding": embedding.mean((0, 1)),
            "moments": {path: moments(y) for path, y in maps.items()},
        }

    return look


def _judge(config: GenerateConfig, norms: Mapping[str, Any]) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """What was seen in the pictures of a batch -> (sum of the terms, weighted; the terms and their sum)."""

    def judge(seen: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]:
        terms = {name: seen[name].mean() for name in ("smoothness", "answers")}
        terms["difference"] = likeness(seen["embedding"])
        if norms:
            terms["statistics"] = statistics_loss(seen["moments"], norms)
        total = sum(getattr(config, name) * value for name, value in terms.items())
        return total, {"loss": total, **terms}

    return judge
