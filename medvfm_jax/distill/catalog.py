"""Every recipe by name; a new one is a file with a ``RECIPE`` and a line here."""

from medvfm_jax.catalog import Catalog
from medvfm_jax.distill.recipes import edge_sam, efficient_vit_sam, mobile_sam, plain, task, tiny_sam
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
        "task": task.RECIPE,
        "plain": plain.RECIPE,
    },
    UnknownRecipe,
)
