"""Every recipe by name; a new one is a file with a ``RECIPE`` and a line here."""

from medvfm_jax.catalog import Catalog
from medvfm_jax.distill.recipes import (
    dear_kd,
    edge_sam,
    efficient_vit_sam,
    emkd,
    mean_teacher,
    mobile_sam,
    mutual,
    plain,
    sam_lightening,
    sami,
    task,
    tiny_sam,
)
from medvfm_jax.distill.record import Recipe
from medvfm_jax.types import MedvfmError


class UnknownRecipe(MedvfmError, ValueError):
    """A name of a recipe that does not exist."""


RECIPES: Catalog[Recipe] = Catalog(
    "recipe",
    {
        "mobile_sam": mobile_sam.RECIPE,
        "tiny_sam": tiny_sam.RECIPE,
        "edge_sam": edge_sam.RECIPE,
        "efficient_vit_sam": efficient_vit_sam.RECIPE,
        "sami": sami.RECIPE,
        "sam_lightening": sam_lightening.RECIPE,
        "dear_kd": dear_kd.RECIPE,
        "task": task.RECIPE,
        "emkd": emkd.RECIPE,
        "mean_teacher": mean_teacher.RECIPE,
        "mutual": mutual.RECIPE,
        "plain": plain.RECIPE,
    },
    UnknownRecipe,
)
