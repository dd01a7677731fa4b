"""Every number of a network, its buffers too: what `medvfm distill` leaves of a student."""

from medvfm_jax.systems import full
from medvfm_jax.systems.places import tuned

EVERYTHING = r".*|.*/(mean|var|positional_encoding_gaussian_matrix)"  # buffers train where they are named

SYSTEM = full.SYSTEM._replace(
    description="every number of a network, its buffers too, which a student takes over from its teacher; made by "
    "`medvfm distill`",
    adapter=lambda spec: {"student": tuned(EVERYTHING)},
    differences="",
)
