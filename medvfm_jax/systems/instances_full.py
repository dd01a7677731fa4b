"""Objects without prompts, with every parameter tuned: for networks from scratch too."""

from medvfm_jax.systems import instances
from medvfm_jax.systems.places import tuned

SYSTEM = instances.SYSTEM._replace(
    description="objects without prompts as instances, with every parameter tuned (Archit et al. 2025); also for "
    "networks of pictures that are trained from scratch",
    adapter=lambda spec: {"full": tuned(r".*")},
    learning_rate=1e-4,
)
