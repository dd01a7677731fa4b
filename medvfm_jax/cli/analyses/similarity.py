"""`medvfm analyze similarity`: alignment of the features of models, each with each."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import SimilarityConfig
from medvfm_jax.theory import SimilarityResult, analyze_similarity


def run(config: SimilarityConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_similarity(config, say)
    return found._asdict(), _text(found)


TOOL = Tool(SimilarityConfig, run)


def _text(found: SimilarityResult) -> str:
    rows = [(a, *(f"{found.alignment[a][b]:.3f}" for b in found.models)) for a in found.models]
    return (
        console.table(("", *found.models), rows)
        + f"\ncentred kernel alignment without bias, mean features of {found.images} pictures of {found.data}"
    )
