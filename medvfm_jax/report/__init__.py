"""One self-contained HTML page about one run or several: scores with intervals, overlays, curves, provenance."""

from medvfm_jax.report.overlays import draw as draw_overlay
from medvfm_jax.report.page import render, write
from medvfm_jax.report.run_record import NothingToReport, Overlay, RunRecord, load

__all__ = ["NothingToReport", "Overlay", "RunRecord", "draw_overlay", "load", "render", "write"]
