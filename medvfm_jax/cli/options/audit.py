"""Options of `medvfm audit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medvfm_jax.settings.audit import AuditConfig


@dataclass(frozen=True)
class AuditArgs(AuditConfig):
    """Measure what a finished run gives away about its patients: two attacks, no proof.

    Example: medvfm audit runs/fed

    Example: medvfm audit runs/private --trials 20000 --patients 100

    With differential privacy, the mechanism of the run is run again with and without a canary: a lower bound on epsilon
    above the claim is an error in the program (exit code 1). For every run, losses of the patients trained on are
    compared with those of the test patients (membership inference; 0.5 is chance). Passing proves nothing: stronger
    attacks exist.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory of `adapt` or `federate`."""
