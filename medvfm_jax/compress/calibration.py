"""What a model computes on calibration images: rows of inputs with gradients, second moments, importance of parts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.adapters.core import at, not_mergeable
from medvfm_jax.adapters.explicit_sites import pattern_of
from medvfm_jax.adapters.model import adapt_model
from medvfm_jax.adapters.products import Product, product_of, rows_at
from medvfm_jax.adapters.visit import visiting
from medvfm_jax.compress.record import Subject
from medvfm_jax.models.attention import with_operands
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import Batch, MedvfmError, Prediction, Prompts

SAMPLED = 2048  # numbers of each operand of attention that are kept of an image


class OutOfRange(MedvfmError, ValueError):
    """What a model computes on calibration images cannot be rounded."""


class Calibration(NamedTuple):
    """Images of training cases, as the model sees them, with prompts and labels.

    Attributes:
        batches: of one image each.
        objective: name of the loss on the labels, see ``train.task``.
        seed: of what is sampled.
        say: told what takes long.
        foreign: why the labels are not those that the model gives, "" where they are.
    """

    batches: Sequence[Batch]
    objective: str = "medsam"
    seed: int = 0
    say: Callable[[str], None] = lambda text: None
    foreign: str = ""

    def require_labels(self) -> None:
        """Raise BadConfig where the labels say nothing of the model's outputs."""
        if self.foreign:
            raise BadConfig(self.foreign)

    def inputs(self) -> Iterable[tuple[Array, Prompts | None]]:
        """(image, prompts) of each; raises BadConfig where there are none."""
        if not self.batches:
            raise BadConfig(
                "There is no calibration image: the training part of the data is empty; give --data with more cases, "
                "or --cases of at least 1."
            )
        for batch in self.batches:
            yield jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), (batch.image, batch.prompts))


class Rows(NamedTuple):
    """What one module multiplies, at sampled places.

    Attributes:
        product: how.
        x: rows of its input, (n, K) or (n, taps, out).
        g: gradient of the loss by its output there, (n, out).
        lows: least value of each channel of its whole input, (in,).
        highs: largest ones, (in,).
        low, high: those of all channels.
        gelu: whether the input comes out of a GELU, as far as its values tell.
    """

    product: Product
    x: NDArray[np.float32]
    g: NDArray[np.float32]
    lows: NDArray[np.float32]
    highs: NDArray[np.float32]

    @property
    def low(self) -> float:
        """Least value of the whole input."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """Largest value of the whole input."""
        return float(self.highs.max())

    @property
    def curvature(self) -> NDArray[np.float32]:
        """Weight of a squared error of the output, (n, out): half g^2, half the mean of g^2 over all places.

        One g^2 is one draw, whose mean alone is the curvature. Where a few places of a few images have nearly all of
        it, steps that are chosen by it alone cut off what is large elsewhere.
        """
        square = np.square(self.g)
        return (square + square.mean(0)) / 2

    @property
    def gelu(self) -> bool:
        """Whether the input looks like that of a GELU: negative, but never below the least value that it has."""
        return -0.1701 < self.low < -0.05 and self.high > 0.5


class Observed(NamedTuple):
    """Of every module that multiplies its input, and of every attention.

    Attributes:
        rows: path -> what it multiplies.
        others: path of a module of another kind with a kernel -> sampled values of its input.
        operands: path of an attention -> operand -> sampled values.
    """

    rows: Mapping[str, Rows]
    others: Mapping[str, NDArray[np.float32]]
    operands: Mapping[str, Mapping[str, NDArray[np.float32]]]


def output_fisher(prediction: Prediction, key: Array) -> Array:
    """A scalar whose squared gradient has the Hessian of the mean KL divergence of the outputs as its mean.

    Labels are drawn from the model's own masks: for a Bernoulli output with probability p the squared gradient of
    the cross-entropy by its logit has the mean p (1 - p), the second derivative of the divergence from it at itself.
    The rated IoU is taken as the mean of a normal distribution. Draws are independent, so squares of sums are sums of
    squares: a sum over n outputs is divided by the root of n, and masks of many pixels count as much as few ratings.
    """
    first, second = jax.random.split(key)
    logits = prediction.logits.astype(jnp.float32)
    if prediction.iou is None:
        classes = jnp.moveaxis(logits, 0, -1)
        drawn = jax.lax.stop_gradient(jax.random.categorical(first, classes))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(classes), drawn[..., None], -1)
        return -chosen.sum() / math.sqrt(chosen.size)
    drawn = jax.lax.stop_gradient(jax.random.bernoulli(first, jax.nn.sigmoid(logits)).astype(jnp.float32))
    masks = (jnp.logaddexp(0.0, logits) - drawn * logits).sum() / math.sqrt(logits.size)
    noise = jax.random.normal(second, prediction.iou.shape)
    return masks + (prediction.iou * noise).sum() / math.sqrt(noise.size)


def observe(subject: Subject, calibration: Calibration, chosen: Callable[[str], bool], rows: int) -> Observed:
    """Run every calibration image once, forwards and backwards.

    Args:
        subject: the model.
        calibration: images.
        chosen: path of a module with a kernel -> whether it is wanted; attention is, where one of its modules is.
        rows: sampled places of each module and image.

    Returns:
        What was seen, over all images.

    Raises:
        BadConfig: no images.
        OutOfRange: a module takes numbers that are not finite.
    """
    products: dict[str, Product] = {}
    rng = np.random.default_rng(calibration.seed)
    places: dict[str, NDArray] = {}

    def forward(
        shifts: dict[str, Array], params: Any, image: Array, prompts: Prompts | None, key: Array
    ) -> Any:
        seen: dict[str, dict[str, Any]] = {"rows": {}, "others": {}, "operands": {}}

        def visit(path: str, module: Any, x: Any, call: Callable[[], Any]) -> Any:
            own = module.variables.get("params", {})
            if "kernel" not in own:
                return call() if not _is_attention(own) else _with_operands(path, call, seen["operands"])
            if not chosen(path) or path in seen["rows"] or path in seen["others"]:
                return call()
            y, product = call(), product_of(module)
            if product is None:
                seen["others"][path] = _sample(x)
                return y
            products[path] = product
            flat = y.reshape(-1, y.shape[-1])
            if path not in places:
                places[path] = rng.choice(len(flat), min(rows, len(flat)), replace=False)
            at_places, before = places[path], tuple(range(x.ndim - 1))
            seen["rows"][path] = rows_at(product, x, y, at_places), x.min(before), x.max(before)
            shift = shifts.get(path, jnp.zeros((len(at_places), y.shape[-1])))
            return flat.at[at_places].add(shift.astype(y.dtype)).reshape(y.shape)

        found = visiting(subject.model.apply, visit)(params, image, prompts)
        return output_fisher(found, key), seen

    step = jax.jit(jax.value_and_grad(forward, has_aux=True))
    shifts: dict[str, Array] | None = None
    images: list[tuple[Any, Any]] = []
    for number, (image, prompts) in enumerate(calibration.inputs()):
        key = jax.random.fold_in(jax.random.key(calibration.seed), number)
        if shifts is None:
            shape = jax.eval_shape(forward, {}, subject.params, image, prompts, key)[1]["rows"]
            widths = jax.eval_shape(lambda p: p, subject.params)["params"]
            shifts = {p: jnp.zeros((len(places[p]), _outputs(widths, p))) for p in shape}
            calibration.say("compiling the pass over calibration images ...")
        (_, seen), gradient = step(shifts, subject.params, image, prompts, key)
        images.append((jax.device_get(seen), jax.device_get(gradient)))
    return _together(images, products)


def moments(
    subject: Subject, calibration: Calibration, chosen: Callable[[str], bool]
) -> dict[str, NDArray[np.float64]]:
    """Second moments x^T x of the inputs x (tokens, in) of modules that multiply by a matrix, mean over images.

    Args:
        subject: the model.
        calibration: images.
        chosen: path of a dense layer or 1x1 convolution -> whether it is wanted.

    Returns:
        Path -> (in, in).

    Raises:
        BadConfig: no images.
        OutOfRange: moments that are not finite.
    """

    def forward(params: Any, image: Array, prompts: Prompts | None) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def visit(path: str, module: Any, x: Any, call: Callable[[], Any]) -> Any:
            if chosen(path):
                rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
                found[path] = found.get(path, 0.0) + rows.T @ rows
            return call()

        visiting(subject.model.apply, visit)(params, image, prompts)
        return found

    step, total, count = jax.jit(forward), {}, 0
    calibration.say("compiling the pass over calibration images ...")
    for image, prompts in calibration.inputs():
        count += 1
        for path, value in jax.device_get(step(subject.params, image, prompts)).items():
            total[path] = total.get(path, 0.0) + value.astype(np.float64)
    for path, value in total.items():
        _finite(path, value)
    return {path: value / count for path, value in total.items()}


def importance(
    subject: Subject, calibration: Calibration, widths: Mapping[str, int]
) -> dict[str, NDArray[np.float64]]:
    """How much the loss on the labels depends on each part of the input of modules, mean over images.

    The input of a module is multiplied by gates, all 1, ``widths[path]`` of them over its last axis in equal parts;
    the importance of a part is the mean over images of the size of the loss's derivative by its gate.

    Args:
        subject: the model.
        calibration: images with labels.
        widths: path of a module -> parts of its input: heads of a projection behind attention, neurons of the second
            layer of a perceptron.

    Returns:
        Path -> (parts,).

    Raises:
        BadConfig: no images, or labels of other classes than the model's.
        OutOfRange: derivatives that are not finite.

    References:
        Michel et al. 2019, https://arxiv.org/abs/1905.10650, equation 2; Molchanov et al. 2019,
        https://arxiv.org/abs/1906.10771, equation 8 (gates).
    """
    calibration.inputs().__iter__().__next__()
    calibration.require_labels()

    def init_site(key: Array, site: Any) -> dict[str, Array]:
        del key
        return {"gate": jnp.ones(widths[site.path])}

    def apply_site(delta: Any, x: Array) -> Array:
        return x * jnp.repeat(delta["gate"], x.shape[-1] // len(delta["gate"]))

    gates = at(pattern_of(widths), "before", init_site, apply_site, not_mergeable("gates"))
    gated = adapt_model(gates, subject.model)
    loss = make_loss(gated, calibration.objective)
    step = jax.jit(jax.grad(lambda delta, params, batch: loss(params, delta, batch, jax.random.key(0))[0]))
    start = {path: {"gate": jnp.ones(n)} for path, n in widths.items()}
    calibration.say("compiling the gradient of the loss ...")
    total: dict[str, Any] = {}
    for batch in calibration.batches:
        for path, arrays in jax.device_get(step(start, subject.params, batch)).items():
            total[path] = total.get(path, 0.0) + np.abs(arrays["gate"].astype(np.float64))
    for path, value in total.items():
        _finite(path, value)
    return {path: value / len(calibration.batches) for path, value in total.items()}


def _outputs(tree: Any, path: str) -> int:
    for name in path.split("/"):
        tree = tree[name]
    return tree["kernel"].shape[-1]


def _is_attention(own: Mapping[str, Any]) -> bool:
    return "qkv" in own or {"q_proj", "k_proj", "v_proj"} <= set(own)


def _with_operands(path: str, call: Callable[[], Any], found: dict[str, Any]) -> Any:
    mine: dict[str, Array] = {}

    def change(name: str, operand: Array) -> Array:
        mine.setdefault(name, _sample(operand, ends=name != "p"))  # shares lie between 0 and 1 in any case
        return operand

    with with_operands(change, at_once=True):
        y = call()
    if mine:
        found.setdefault(path, mine)
    return y


def _sample(x: Array, ends: bool = True) -> Array:
    """At most ``SAMPLED`` values evenly over an array; ends: and the least and the largest one."""
    flat = jax.lax.stop_gradient(x).reshape(-1)
    step = max(1, -(-flat.shape[0] // SAMPLED))
    return jnp.concatenate([flat[::step], flat.min()[None], flat.max()[None]]) if ends else flat[::step]


def _together(images: Sequence[tuple[Any, Any]], products: Mapping[str, Product]) -> Observed:
    first = images[0][0]
    rows = {}
    for path in first["rows"]:
        seen = [image["rows"][path] for image, _ in images]
        x, g = (
            np.concatenate([s[0] for s in seen]),
            np.concatenate([gradient[path] for _, gradient in images]),
        )
        _finite(path, x)
        _finite(path, g)
        lows, highs = np.min([s[1] for s in seen], 0), np.max([s[2] for s in seen], 0)
        rows[path] = Rows(products[path], x, g, lows, highs)
    others = {p: np.concatenate([image["others"][p] for image, _ in images]) for p in first["others"]}
    operands = {
        path: {name: np.concatenate([image["operands"][path][name] for image, _ in images]) for name in mine}
        for path, mine in first["operands"].items()
    }
    for path, values in others.items():
        _finite(path, values)
    return Observed(rows, others, operands)


def _finite(path: str, values: NDArray) -> None:
    if not np.isfinite(values).all():
        raise OutOfRange(
            f"{path} computes numbers that are not finite on the calibration images, so that nothing can be chosen; "
            "its weights are damaged, or the images are."
        )
