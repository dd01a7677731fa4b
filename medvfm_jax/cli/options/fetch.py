"""Options of `medvfm fetch`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from medvfm_jax.local_paths import URL


@dataclasses.dataclass(frozen=True)
class FetchArgs:
    """Bring the copy of a run that --mirror kept on storage to this machine, every file verified.

    Example: medvfm fetch gs://bucket/runs/a --out runs/a

    It is the last whole copy, also of a run that is still training or was killed; evaluate, segment, export and the
    others take the folder like any run. To go on with the training, give `adapt` its command with --mirror and
    --resume instead, which brings the run by itself.
    """

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")] = dataclasses.field(
        metadata={URL: True}
    )
    """Where the copy lies, as given to --mirror."""
    out: Path = dataclasses.field(kw_only=True)
    """Run directory to create; new or empty."""
