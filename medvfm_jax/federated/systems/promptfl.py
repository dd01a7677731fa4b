"""PromptFL: learned prompts averaged, everything else frozen."""

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.systems.prompt_federation import prompt_parts
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import System

SYSTEM = FederatedSystem(
    System(
        description="only prompt tokens trained and averaged (after PromptFL, Guo et al. 2023)",
        source="https://arxiv.org/abs/2208.11625",
        adapter=prompt_parts,
        differences="PromptFL learns CLIP's text context; here the tokens are visual: deep prompts of a plain ViT, or "
        "the token embeddings of SAM's prompt encoder and mask decoder.",
    ),
    fedavg,
)
