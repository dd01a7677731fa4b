"""Plans made before renting: a training step or a federated round, compiled for devices that need not be here."""

from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.step_plan import Plan, plan

__all__ = ["BadPlan", "Plan", "plan"]
