"""What the makers publish about accelerators; estimates rest on it.

Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e" (system architecture, 2025) give per chip: peak bfloat16
FLOP/s, HBM capacity and bandwidth, the chips of a pod and the inter-chip interconnect (ICI) in bit/s over all links.
Whether that counts both directions is not said; half of it is taken, the cautious reading.  The clock is not on those
pages.  For v5e and v5p it is what makes the published number of matrix units (4 and 8 of
128 x 128 multiply-adds per cycle) reach the published peak; for v6e the number of units is published ambiguously, so
compilers' cycles are not turned into seconds there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """flops: peak bfloat16 FLOP/s.  hbm: bytes.  bandwidth: of HBM, bytes/s.  ici: bytes/s sent over all links.

    clock: Hz, or None.  dimensions: of a slice's shape.  pod: chips of the largest slice.
    """

    name: str
    flops: float
    hbm: int
    bandwidth: float
    ici: float
    clock: float | None
    dimensions: int
    pod: int


CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 1600e9 / 8 / 2, 1.5e9, 2, 256),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 4800e9 / 8 / 2, 1.75e9, 3, 8960),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1640e9, 3584e9 / 8 / 2, None, 2, 256),
}
