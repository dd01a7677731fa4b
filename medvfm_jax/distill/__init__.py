"""Distillation: recipes by name, and students cut out of their teachers."""

from medvfm_jax.distill.catalog import RECIPES, UnknownRecipe
from medvfm_jax.distill.generate import GenerateResult, generate
from medvfm_jax.distill.inherit import Inherited, NothingInherited, inherit
from medvfm_jax.distill.inversion import NotInvertible
from medvfm_jax.distill.matching import TeacherMismatch
from medvfm_jax.distill.record import Recipe, Stage
from medvfm_jax.distill.run import distill
from medvfm_jax.distill.terms import TERMS, UnknownTerm

__all__ = [
    "RECIPES",
    "TERMS",
    "GenerateResult",
    "Inherited",
    "NotInvertible",
    "NothingInherited",
    "Recipe",
    "Stage",
    "TeacherMismatch",
    "UnknownRecipe",
    "UnknownTerm",
    "distill",
    "generate",
    "inherit",
]
