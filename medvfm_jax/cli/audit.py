"""`medvfm audit`: what a finished run gives away about its patients, measured."""

import sys
from dataclasses import fields
from typing import Any

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.audit import AuditArgs
from medvfm_jax.federated.run.audit import audit
from medvfm_jax.settings.audit import AuditConfig


def run(args: AuditArgs) -> int:
    """Attack, print what was found, write audit.json; 1 if the claim is refuted."""
    config = AuditConfig(**{field.name: getattr(args, field.name) for field in fields(AuditConfig)})
    found = audit(config, Console(file=sys.stderr, highlight=False))
    warning = [] if found["not_private"] is None else [found["not_private"]]
    lines = [*warning, *_canary(found["canary"]), *_membership(found["membership"])]
    console.result(found, "\n".join([*lines, f"audit: {found['file']}; next: medvfm report {config.run}"]))
    return int(found["canary"] is not None and found["canary"]["contradicts"])


def _canary(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["no differential privacy, so no claim to hold a canary against"]
    verdict = "REFUTED, an error in the program" if found["contradicts"] else "not contradicted"
    if found["largest_possible"] <= found["claimed_epsilon"]:
        verdict = (
            f"so few trials show at most {found['largest_possible']:.3g} and cannot refute it; raise --trials"
        )
    lines = [
        f"canary ({found['unit']}): epsilon is at least {found['lower_bound']:.3g} with confidence "
        f"{found['confidence']:g}, {found['claimed_epsilon']:.3g} is claimed: {verdict} ({found['trials']} trials each)"
    ]
    return lines if found["left_out"] is None else [*lines, f"the canary did not try: {found['left_out']}"]


def _membership(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, words in (("loss", "by loss"), ("loss_change", "by change of loss in training")):
        row = found[name]
        error = "" if row["auc_error"] is None else f" +- {row['auc_error']:.3f}"
        lines.append(
            f"membership {words}: AUC {row['auc']:.3f}{error} (0.5 is chance), largest advantage "
            f"{row['advantage']:.3f}, {row['found']:.0%} of {row['members']} patients found at "
            f"{row['found_at']:.0%} of {row['others']} others accused"
        )
    if "allowed_auc" in found:
        lines.append(
            f"what the guarantee allows at most: AUC {found['allowed_auc']:.3f}, advantage "
            f"{found['allowed_advantage']:.3f}"
        )
    return lines
