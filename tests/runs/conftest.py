"""Fixtures of whole runs on small phantoms."""

from tests.runs.copies import empty_memory, run, url  # noqa: F401
from tests.train.run_fixtures import (  # noqa: F401
    cells,
    compiled,
    fake,
    finished,
    models_built_once,
    own_cache,
    own_run,
    volumes,
)
