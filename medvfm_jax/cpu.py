"""Settings of the process that make XLA's CPU backend faster; they change no result beyond rounding.

The command line and the benchmarks call ``tune`` before JAX starts.  An import alone does not change the
process, so programs of your own call it themselves: ``medvfm_jax.cpu.tune()``, first thing.
"""

import ctypes
import os
import sys

import jaxlib

# Only products of matrices go to the external kernels: with elementwise operations and sums in the same fusion,
# broadcast operands are written out and gradients of LiteMedSAM need half as much memory again.
_FLAGS = {"xla_cpu_experimental_ynn_fusion_type": "-eltwise,-reduce"}
_FLAGS_KNOWN_TO = "0.10."  # XLA ends the process on a flag it does not know
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def tune() -> None:
    """Set XLA's flags and glibc's allocator; call it before the first use of JAX.

    Flags given in XLA_FLAGS win.  Memory of temporary buffers is kept for the next call instead of being
    returned and cleared page by page at each call, which takes a sixth of the time of a gradient; where the C
    library is another one than glibc, nothing happens.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith(_FLAGS_KNOWN_TO):
        added = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in given]
        os.environ["XLA_FLAGS"] = " ".join([*filter(None, [given]), *added])
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_memory()


def _keep_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)
