"""SSF: scale and shift of every feature."""

from medvfm_jax.systems.places import LINEAR_AND_NORM, tuned_decoder
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="scale and shift after every linear layer and norm of the image encoder's blocks; mask decoder tuned "
    "(Lian et al. 2022)",
    source="https://arxiv.org/abs/2210.08823",
    adapter=lambda spec: {**tuned_decoder(spec), "ssf": {"kind": "scale_shift", "at": LINEAR_AND_NORM}},
    differences="Published for classification: here the mask decoder takes the place of the classifier.",
)
