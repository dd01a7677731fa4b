"""A function of JAX as a serialised ``jax.export``: StableHLO with a promise of compatibility."""

from pathlib import Path

import jax
from jax import export

from medvfm_jax.export.parts import Part

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_stablehlo(part: Part, path: Path) -> None:
    """Write a part, its weights within, for every platform; ``jax.export.deserialize(...).call`` runs it.

    Args:
        part: what to write; sizes may be left open.
        path: of the file.

    References:
        https://docs.jax.dev/en/latest/export/export.html
    """
    exported = export.export(jax.jit(part.portable), platforms=PLATFORMS)(*part.shapes())
    path.write_bytes(exported.serialize())
