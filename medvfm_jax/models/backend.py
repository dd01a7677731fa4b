"""Which backend formulations are chosen for: JAX's default, or the one a program is being compiled for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("medvfm_target_backend", default=None)


def backend() -> str:
    """Name of the backend ("cpu", "gpu", "tpu") that what is traced now will run on."""
    return _target.get() or jax.default_backend()


def planned() -> bool:
    """Whether what is traced now is compiled for a machine that is described, see ``compiling_for``."""
    return _target.get() is not None


def has_triton() -> bool:
    """Whether the GPU that what is traced now will run on compiles Triton's kernels: compute capability 8 or more.

    A GPU that is not here is taken to be one.
    """
    if planned() or jax.default_backend() != "gpu":
        return True
    try:
        return float(jax.local_devices()[0].compute_capability) >= 8
    except ValueError:  # AMD's have names
        return False


@contextmanager
def on_host() -> Iterator[None]:
    """Within this block JAX computes on the CPU, where there is one beside the accelerator.

    Initial numbers are drawn here, so that a run that was trained from scratch on a GPU finds its own on a CPU: what
    backends make of the same random bits differs in the last place.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        yield
    else:
        with jax.default_device(device):
            yield


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Within this block models are traced as on backend ``name``, which need not exist here."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)
