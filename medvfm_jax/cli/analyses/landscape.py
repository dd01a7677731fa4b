"""`medvfm analyze landscape`: the loss on a plane around a run."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.report.charts import standalone
from medvfm_jax.report.heat_map import heat_map
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.analyze import LandscapeConfig
from medvfm_jax.theory import LandscapeResult, analyze_landscape

RECORD, PLOT = "landscape.json", "landscape.svg"


def run(config: LandscapeConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, which is also written beside a plot, and the table."""
    found = analyze_landscape(config, say)
    plane = found.plane
    numbers = {
        name: None if x is None else x.tolist() for name, x in plane._asdict().items() if name in _ARRAYS
    }
    record = run_directory.finite(found._asdict() | {"plane": plane._asdict() | numbers})
    folder = config.out or config.run
    run_directory.make_folder(folder)
    run_directory.write_json(folder / RECORD, record)
    title = f"Loss of {found.images} {found.part} images"
    plot = heat_map(title, plane.places.tolist(), plane.losses.tolist(), "second direction", "first", "loss")
    (folder / PLOT).write_text(standalone(plot), encoding="utf-8")
    return record | {"plot": str(folder / PLOT)}, f"{_text(found)}\nplot: {folder / PLOT}"


TOOL = Tool(LandscapeConfig, run)
_ARRAYS = ("places", "losses", "errors")


def _text(found: LandscapeResult) -> str:
    plane = found.plane
    rows = [
        (f"{place:+.3g}", *(f"{value:.4f}" for value in line))
        for place, line in zip(plane.places, plane.losses, strict=True)
    ]
    middle, (a, b, lowest) = len(plane.places) // 2, plane.lowest
    error = "" if plane.errors is None else f", {_error(found)}"
    return (
        console.table(("first, second", *(f"{place:+.3g}" for place in plane.places)), rows)
        + f"\nloss of the run {plane.losses[middle, middle]:.4f}, lowest on the plane {lowest:.4f} at {a:+.3g}, "
        f"{b:+.3g}{error}; curvature along the directions {plane.curvature[0]:.3g} and {plane.curvature[1]:.3g}\n"
        f"{found.trained:,} trained numbers, {found.images} {found.part} images, {found.seconds:.0f} s"
    )


def _error(found: LandscapeResult) -> str:
    plane = found.plane
    a, b = (plane.places.tolist().index(place) for place in plane.lowest[:2])
    return f"their difference +- {plane.errors[a, b]:.2g} over images"
