"""Files that a command is about to write, checked before any work is done for them."""

import os
from pathlib import Path

from medvfm_jax.cli.errors import BadUsage


def check_target(path: Path, overwrite: bool) -> None:
    """Raise BadUsage if a file exists (unless it may be overwritten) or could not be written here."""
    if path.is_dir():
        raise BadUsage(f"{path} is a folder, a file was expected; choose another name")
    if path.exists() and not overwrite:
        raise BadUsage(f"{path} exists; add --overwrite to replace it, or choose another name")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise BadUsage(f"{above} is a file, so {path} cannot be written below it; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise BadUsage(f"there is no permission to write into {above}; choose another --out")
