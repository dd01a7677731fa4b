"""How a port table is written: rows of PyTorch's names, our paths and array layouts."""

from medvfm_jax.port_tables.table import PortTable, Row

__all__ = ["PortTable", "Row"]
