"""`medvfm analyze attention-distance`: how far each layer of encoders looks."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import AttentionDistanceConfig
from medvfm_jax.theory import AttentionDistanceResult, analyze_attention_distance


def run(config: AttentionDistanceConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_attention_distance(config, say)
    models = [
        model._asdict() | {"layers": [layer._asdict() for layer in model.layers]} for model in found.models
    ]
    return found._asdict() | {"models": models}, _text(found)


TOOL = Tool(AttentionDistanceConfig, run)


def _text(found: AttentionDistanceResult) -> str:
    rows = [
        (
            model.model,
            layer.layer,
            f"{layer.side} x {layer.side}",
            layer.windows,
            f"{sum(layer.heads) / len(layer.heads):.2f}",
            f"{layer.error:.2f}",
            f"{min(layer.heads):.2f}",
            f"{max(layer.heads):.2f}",
            f"{layer.uniform:.2f}",
        )
        for model in found.models
        for layer in model.layers
    ]
    left_out = "".join(
        f"\n{model.model}: {model.left_out} layers whose queries are not the places they look at are left out"
        for model in found.models
        if model.left_out
    )
    pictures = f"pictures of {found.data}" if found.data else "pictures of noise"
    columns = ("model", "layer", "sees", "windows", "distance", "+-", "least head", "most", "uniform")
    return (
        console.table(columns, rows)
        + f"\nin sides of a token of that layer; {found.images} {pictures}, +-: standard error over them; uniform: of "
        "attention that is the same everywhere in what a query sees" + left_out
    )
