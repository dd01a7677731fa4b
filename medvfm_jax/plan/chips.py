"""What the makers publish about accelerators; estimates rest on it.

TPUs: Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e" (system architecture, 2025) give per chip: peak bfloat16
FLOP/s, HBM capacity and bandwidth, the chips of a pod and the inter-chip interconnect (ICI) in bit/s over all links.
Whether that counts both directions is not said; half of it is taken, the cautious reading.  The clock is not on those
pages.  For v5e and v5p it is what makes the published number of matrix units (4 and 8 of
128 x 128 multiply-adds per cycle) reach the published peak; for v6e the number of units is published ambiguously, so
compilers' cycles are not turned into seconds there.

A hop between neighbouring chips takes about 1 us whatever it carries (Austin et al. 2025, "How to Scale Your Model",
part 3, on the latency of ICI, https://jax-ml.github.io/scaling-book/sharding).  For GPUs no published figure is used.

GPUs: NVIDIA's data sheets and DGX user guides give per GPU (SXM boards) the peak of dense bfloat16 products, memory
and its bandwidth, NVLink in both directions together, of which half is sending, and one network adapter per GPU: HDR
200 Gbit/s in DGX A100, NDR 400 Gbit/s in DGX H100 and H200.
"""

from dataclasses import dataclass

from medvfm_jax.catalog import Catalog
from medvfm_jax.plan.errors import BadPlan


@dataclass(frozen=True)
class Chip:
    """flops: peak bfloat16 FLOP/s.  hbm: bytes.  bandwidth: of HBM, bytes/s.  ici: bytes/s sent over all links.

    clock: Hz, or None.  dimensions: of a slice's shape.  pod: chips of the largest slice, or GPUs of one host.
    network: bytes/s a GPU sends to other hosts.  hop: seconds a message to a neighbour takes beside its bytes, 0: not
    counted.
    """

    name: str
    flops: float
    hbm: int
    bandwidth: float
    ici: float
    clock: float | None
    dimensions: int
    pod: int
    backend: str = "tpu"
    network: float | None = None
    hop: float = 0.0


_HOP = 1e-6  # seconds
_TPUS = {
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 1600e9 / 8 / 2, 1.5e9, 2, 256, hop=_HOP),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 4800e9 / 8 / 2, 1.75e9, 3, 8960, hop=_HOP),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1640e9, 3584e9 / 8 / 2, None, 2, 256, hop=_HOP),
}
_GPUS = {
    "a100": Chip("NVIDIA A100 80 GB", 312e12, 85_100_068_864, 2039e9, 300e9, None, 1, 8, "gpu", 200e9 / 8),
    "h100": Chip("NVIDIA H100 80 GB", 989.4e12, 84_942_979_072, 3352e9, 450e9, None, 1, 8, "gpu", 400e9 / 8),
    "h200": Chip(
        "NVIDIA H200 141 GB", 989.4e12, 151_397_597_184, 4800e9, 450e9, None, 1, 8, "gpu", 400e9 / 8
    ),
}
CHIPS: Catalog[Chip] = Catalog("chip", _TPUS | _GPUS, BadPlan)
