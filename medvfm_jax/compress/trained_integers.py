"""Quantisation-aware training: weights and steps of `integers` trained further with the rounding in the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters.integer_weights import SCALES, rounded, stored
from medvfm_jax.adapters.model import AdaptedModel
from medvfm_jax.adapters.parameter_paths import fold
from medvfm_jax.compress import integers
from medvfm_jax.compress.calibration import Calibration, OutOfRange
from medvfm_jax.compress.integer_parts import check
from medvfm_jax.compress.record import REST, Compressed, ParamTransform, Subject, applied
from medvfm_jax.compress.sites import KERNELS, leaf, with_rest
from medvfm_jax.losses import hinton, mask_distillation
from medvfm_jax.settings.records import require
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import LossFn, make_step
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import Batch, Delta, Params, Prediction

Goal = Literal["teacher", "labels"]
_RATED = 8  # times that all images are looked at during training; the best state is kept


class Lesson(NamedTuple):
    """A batch of one image, and what the floating-point model gives for it, with the same leading axis."""

    batch: Batch
    teacher: Prediction


class Trainable(NamedTuple):
    """A model that rounds, as a function of what is trained.

    What is trained starts at 0 everywhere: ``moved`` of a kernel counts in steps of its output, ``factor`` of a step is
    the logarithm of what it is multiplied by. So one learning rate fits all, and decay pulls towards the start.

    Attributes:
        model: rounds inputs and operands; takes the parts of the delta that do.
        kernels: path -> (K, out), the floating-point weights.
        steps: path -> (out,), of the weights at the start.
        inputs: part -> path -> steps at the start.
    """

    model: AdaptedModel
    kernels: Mapping[str, Array]
    steps: Mapping[str, Array]
    inputs: Delta

    def start(self) -> Delta:
        """What is trained, before the first step."""
        weights = {
            path: {"moved": jnp.zeros(kernel.shape), "factor": jnp.zeros(kernel.shape[1])}
            for path, kernel in self.kernels.items()
        }
        return {"weights": weights, **jax.tree.map(jnp.zeros_like, self.inputs)}

    def weights(self, trained: Delta, path: str, bits: int) -> tuple[Array, Array]:
        """Integers (K, out) as floating-point numbers, with a gradient, and their steps (out,)."""
        own, before = trained["weights"][path], self.steps[path]
        steps = before * jnp.exp(own["factor"])
        return rounded(self.kernels[path] + own["moved"] * before, steps, bits), steps

    def rounding(self, trained: Delta) -> Delta:
        """The steps of inputs and operands."""
        return {
            part: jax.tree.map(lambda step, factor: step * jnp.exp(factor), sites, trained[part])
            for part, sites in self.inputs.items()
        }

    def apply(self, params: Params, trained: Delta, *inputs: Any, bits: int, **kw: Any) -> Prediction:
        """The model with everything rounded, as the delta that is stored will have it."""

        def put(own: Params, kernel: Array) -> Params:
            return {"kernel": kernel.reshape(own["kernel"].shape).astype(own["kernel"].dtype)}

        made = {path: self.weights(trained, path, bits) for path in self.kernels}
        params = fold(params, {path: codes * steps for path, (codes, steps) in made.items()}, put)
        return self.model.apply(params, self.rounding(trained), *inputs, **kw)


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    steps: int = 100,
    learning_rate: float = 0.01,
    loss: Goal = "teacher",
    bits: int = 8,
    candidates: int = 20,
    rounds: int = 1,
    rows: int = 32,
    attention: bool = True,
    at: str = KERNELS,
) -> Compressed:
    check(steps=(steps, 1))
    require(0 < learning_rate <= 1, "learning_rate", learning_rate, "above 0 and at most 1")
    if loss == "labels":
        calibration.require_labels()
    begin = integers.TRANSFORM.init(
        subject, calibration,
        bits=bits, candidates=candidates, rounds=rounds, rows=rows, attention=attention, at=at,
    )  # fmt: skip
    trainable = trainable_of(subject, begin)
    lessons = lessons_of(subject, calibration)
    function = loss_of(trainable, loss, bits, calibration.objective)
    order = np.random.default_rng(calibration.seed)
    optimizer = make_optimizer(make_schedule("cosine", learning_rate, steps, min(steps // 20, steps)))
    step = make_step(function, optimizer)
    state = init_state(trainable.start(), optimizer, jax.random.key(calibration.seed))
    rate = jax.jit(lambda params, trained, lesson: function(params, trained, lesson, jax.random.key(0))[0])

    def rated(trained: Delta) -> float:
        return float(np.mean([rate(subject.params, trained, lesson) for lesson in lessons]))

    best = start = jax.device_get(state.delta)
    before = least = rated(start)
    calibration.say("compiling a training step with everything rounded ...")
    waiting: list[int] = []
    for number in range(steps):
        waiting = waiting or list(order.permutation(len(lessons)))
        state, metrics = step(subject.params, state, lessons[waiting.pop()])
        if not metrics["finite"]:
            raise OutOfRange(
                f"Training of the rounded model diverged in step {number + 1}: its loss or a gradient is not finite; "
                f"give a smaller --set learning_rate than {learning_rate:g}."
            )
        if (number + 1) % max(1, steps // _RATED) == 0 or number + 1 == steps:
            found = rated(state.delta)
            calibration.say(f"step {number + 1} of {steps}: loss {found:.4f}, {before:.4f} before training")
            if found < least:
                best, least = jax.device_get(state.delta), found
    if best is start:
        calibration.say("no step made the rounded model better; it is stored as `integers` gives it")
    parts, delta = trained_parts(begin, trainable, best, bits)
    facts = {**begin.facts, "steps": steps, "loss_before": round(before, 5), "loss_after": round(least, 5)}
    return with_rest(subject, Compressed(parts, delta, facts), at)


def trainable_of(subject: Subject, begin: Compressed) -> Trainable:
    """What `integers` has found, as the start of training.

    Args:
        subject: the model.
        begin: of `integers`.

    Returns:
        A model that is, with what ``start`` gives, the one that begins.
    """
    weights = begin.delta["weights"]
    parts = {name: part for name, part in begin.parts.items() if name not in (REST, "weights")}
    inputs = {name: begin.delta[name] for name in parts}
    kernels = {path: leaf(subject, path, "kernel") for path in weights}
    return Trainable(
        applied(Compressed(parts, inputs, {}), subject.model),
        {path: jnp.asarray(w.reshape(-1, w.shape[-1]), jnp.float32) for path, w in kernels.items()},
        {path: jnp.asarray(arrays[f"kernel{SCALES}"][0]) for path, arrays in weights.items()},
        jax.tree.map(jnp.asarray, inputs),
    )


def trained_parts(
    begin: Compressed, trainable: Trainable, trained: Delta, bits: int
) -> tuple[dict[str, Any], Delta]:
    """Configurations and arrays of the rounded model after training, without the rest.

    Args:
        begin: of `integers`.
        trainable: made of it.
        trained: what was trained.
        bits: of a weight.

    Returns:
        Parts and delta of a ``Compressed``.
    """
    parts = {name: part for name, part in begin.parts.items() if name != REST}
    delta: Delta = {"weights": {}, **jax.device_get(trainable.rounding(trained))}
    for path in begin.delta["weights"]:
        codes, steps = jax.device_get(trainable.weights(trained, path, bits))
        delta["weights"][path] = stored("kernel", codes.astype(np.int8), steps[None], bits)
    return parts, delta


def lessons_of(subject: Subject, calibration: Calibration) -> Sequence[Lesson]:
    """Calibration images with what the floating-point model gives for them; raises BadConfig for none."""
    predict = jax.jit(lambda params, image, prompts: subject.model.apply(params, image, prompts))
    given = (jax.device_get(predict(subject.params, *seen)) for seen in calibration.inputs())
    return [
        Lesson(batch, jax.tree.map(lambda leaf: leaf[None], found))
        for batch, found in zip(calibration.batches, given, strict=True)
    ]


def loss_of(trainable: Trainable, goal: Goal, bits: int, objective: str) -> LossFn:
    """What is minimised: the distance from the floating-point model's masks, or the loss on the labels.

    Args:
        trainable: the model that rounds.
        goal: "teacher": of each mask cross-entropy and Dice semimetric against the teacher's, of classes the KL
            divergence; "labels": ``objective``.
        bits: of a weight.
        objective: see ``train.task``.

    Returns:
        ``loss(params, trained, lesson, key) -> (scalar, metrics)``.
    """

    def apply(params: Params, trained: Delta, *inputs: Any, **kw: Any) -> Prediction:
        return trainable.apply(params, trained, *inputs, bits=bits, **kw)

    if goal == "labels":
        on_labels = make_loss(trainable.model._replace(apply=apply), objective)
        return lambda params, trained, lesson, key: on_labels(params, trained, lesson.batch, key)

    def against_teacher(
        params: Params, trained: Delta, lesson: Lesson, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        del key

        def one(image: Array, prompts: Any, weight: Array, teacher: Prediction) -> Array:
            found = apply(params, trained, image, prompts)
            if prompts is None:
                return hinton(found.logits, teacher.logits, temperature=1.0)
            masks = jax.vmap(jax.vmap(mask_distillation))(found.logits, teacher.logits).mean(-1)
            return (masks * weight).sum() / jnp.maximum(weight.sum(), 1.0)

        batch = lesson.batch
        return jax.vmap(one)(batch.image, batch.prompts, batch.weight, lesson.teacher).mean(), {}

    return against_teacher


TRANSFORM = ParamTransform(
    description="`integers`, and then a few steps of training with the rounding in the model: kernels and all steps "
    "learn by gradients that pass straight through (quantisation-aware training, Jacob et al. 2018; steps: LSQ, "
    "Esser et al. 2020)",
    source="https://arxiv.org/abs/1902.08153",
    init=_init,
    differences="On the calibration images alone, against the masks of the floating-point model (loss=labels: "
    "against the labels), of which the best state is kept. Kernels move in units of their step and steps by factors, "
    "so that one learning rate of AdamW fits both; norms and biases stay.",
)
