"""`medvfm analyze receptive_field`: size of the effective receptive field of encoders."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import ReceptiveFieldConfig
from medvfm_jax.theory import ReceptiveFieldResult, analyze_receptive_field


def run(config: ReceptiveFieldConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_receptive_field(config, say)
    models = [
        model._asdict() | {"field": model.field._asdict(), "error": model.error._asdict()}
        for model in found.models
    ]
    return found._asdict() | {"models": models}, _text(found)


TOOL = Tool(ReceptiveFieldConfig, run)


def _text(found: ReceptiveFieldResult) -> str:
    columns = ("model", "input", "stride", "deviation, height", "+-", "width", "+-", "95 % square", "+-", "s")
    rows = [
        (
            model.model,
            model.side,
            f"{model.stride:g}",
            *(
                word
                for pair in zip(model.field, model.error)
                for word in (f"{pair[0]:.1f}", f"{pair[1]:.1f}")
            ),
            f"{model.seconds:.0f}",
        )
        for model in found.models
    ]
    pictures = f"pictures of {found.data}" if found.data else "pictures of noise"
    return (
        console.table(columns, rows)
        + f"\npixels of the model's input, around the middle place of its map; {found.images} {pictures}, +-: standard "
        "error over them"
    )
