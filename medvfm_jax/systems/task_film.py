"""FiLM of the task: scale and shift of every feature, which each task has for itself."""

from medvfm_jax.systems.places import LINEAR_AND_NORM, tuned_decoder
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="scale and shift of the task after every linear layer and norm of the image encoder's blocks; mask "
    "decoder tuned (after Perez et al. 2018, FiLM)",
    source="https://arxiv.org/abs/1709.07871",
    adapter=lambda spec: {**tuned_decoder(spec), "film": {"kind": "task_film", "at": LINEAR_AND_NORM}},
    differences="Published for questions about pictures; here the condition is the task of the site, so that the "
    "generator of scale and shift is a table.",
)
