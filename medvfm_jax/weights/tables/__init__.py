"""Port tables, one file per family of checkpoints."""
