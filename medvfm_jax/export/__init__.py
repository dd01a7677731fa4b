"""Export: a model as files of other runtimes, checked against JAX, with a card and a bundle that runs them."""

from medvfm_jax.export.formats import FORMATS, UnknownFormat
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.run import export, export_encoder

__all__ = ["FORMATS", "CannotExport", "UnknownFormat", "export", "export_encoder"]
