"""Activations rounded to a few levels where they enter a module, or a product of attention, with fixed steps.

The rounded values are floating-point numbers, so the model computes what integer arithmetic would give: products of
two 8-bit integers are exact in float32, and so are their sums up to 2^24.  It becomes no faster by that.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, at, not_mergeable
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.adapters.straight_through import nearest
from medvfm_jax.models.attention import Operand, with_operands

Form = Literal["symmetric", "asymmetric", "gelu", "softmax"]
GELU_DEPTH = 0.16997  # the least value of x * Phi(x) is -0.16997
OPERANDS: Mapping[Operand, Form] = {"q": "symmetric", "k": "symmetric", "p": "softmax", "v": "symmetric"}


def round_to(form: Form, x: Any, step: Any, bits: int) -> Any:
    """Values x -> the nearest of at most 2^bits levels, same shape and dtype.

    step: (1,) float32, of "asymmetric" (2,).  symmetric: integers times the step, as many below 0 as above and one
    more.  asymmetric: 2^bits levels of step[0] from step[1] on.  gelu: below 0 half of the levels, down to
    -``GELU_DEPTH``; above 0 the other half, of the step.  softmax: of values from 0 to 1 half of the levels divide 1,
    half are of the finer step.  Of numpy arrays a numpy array, so that nothing is compiled.
    Gradients pass straight through the rounding, to x and to the step, see ``nearest``.
    """
    xp = np if isinstance(x, np.ndarray) and isinstance(step, np.ndarray) else jnp
    half = 2 ** (bits - 1)

    def levels(step: Any, least: int, most: int, start: Any = 0) -> Any:
        return nearest(xp.clip((x - start) / step, least, most)) * step + start

    if form == "symmetric":
        y = levels(step[0], -half, half - 1)
    elif form == "asymmetric":
        y = levels(step[0], 0, 2 * half - 1, step[1])
    elif form == "gelu":
        y = xp.where(x < 0, levels(GELU_DEPTH / half, -half, 0), levels(step[0], 0, half - 1))
    else:
        y = xp.where(x >= half * step[0], levels(1.0 / (half - 1), 0, half - 1), levels(step[0], 0, half - 1))
    return y.astype(x.dtype)


def step_count(form: Form) -> int:
    """Numbers that a form has at a site."""
    return 2 if form == "asymmetric" else 1


def integer_inputs(at_modules: str, form: Form = "symmetric", bits: int = 8) -> Adapter:
    """Round what enters every module whose path fully matches a pattern; one step for a whole array ("per tensor").

    Args:
        at_modules: regular expression of module paths, full match.
        form: which levels there are, see ``round_to``.
        bits: 2 to 8.

    Returns:
        The adapter; it cannot be merged. Its ``init`` gives steps of 1, which calibration replaces.

    Raises:
        BadAdapterConfig: an option out of range.

    References:
        Yuan et al. 2022, "PTQ4ViT", https://arxiv.org/abs/2111.12293, section 3.2 (two ranges behind softmax and GELU);
        Shu et al. 2025, "TinySAM", https://arxiv.org/abs/2312.13789, section 3.3.
    """
    _check(bits, form)

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key, site
        return {"step": jnp.ones(step_count(form), jnp.float32)}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        return call(round_to(form, x, delta["step"], bits))

    config = {"kind": "integer_inputs", "at_modules": at_modules, "form": form, "bits": bits}
    return at(at_modules, "around", init_site, apply_site, not_mergeable("rounds activations"), config)


def integer_products(at_modules: str, bits: int = 8) -> Adapter:
    """Round the operands of both products of attention in every module whose path fully matches a pattern.

    Args:
        at_modules: regular expression of the paths of attention modules, full match.
        bits: 2 to 8.

    Returns:
        The adapter; it cannot be merged. Its ``init`` gives steps of 1, which calibration replaces.

    Raises:
        BadAdapterConfig: an option out of range.

    References:
        Yuan et al. 2022, "PTQ4ViT", https://arxiv.org/abs/2111.12293, section 3.2.
    """
    _check(bits)

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key, site
        return {name: jnp.ones(1, jnp.float32) for name in OPERANDS}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        def change(name: Operand, operand: Array) -> Array:
            return round_to(OPERANDS[name], operand, delta[name], bits)

        with with_operands(change):
            return call(x)

    config = {"kind": "integer_products", "at_modules": at_modules, "bits": bits}
    return at(at_modules, "around", init_site, apply_site, not_mergeable("rounds activations"), config)


def _check(bits: Any, form: Any = "symmetric") -> None:
    if type(bits) is not int or not 2 <= bits <= 8:
        raise BadAdapterConfig(f"bits is {bits!r:.40}; expected a whole number from 2 to 8.")
    if form not in get_args(Form):
        raise BadAdapterConfig(f"form is {form!r:.40}; expected one of {', '.join(get_args(Form))}.")
