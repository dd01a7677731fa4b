"""The section of a report about what `medvfm audit` found in a run."""

from collections.abc import Mapping
from typing import Any

from medvfm_jax.report.run_record import RunRecord
from medvfm_jax.report.sections import section
from medvfm_jax.report.tables import facts


def audit(run: RunRecord) -> str:
    """Both attacks with what they allow to say; "" for a run that was not audited."""
    if not run.audit:
        return ""
    warning = run.audit.get("not_private")  # files of before have none
    rows = [("secret", warning)] if warning else []
    rows += [*_canary(run.audit["canary"]), *_membership(run.audit["membership"])]
    lead = (
        "Two attacks on this run (medvfm audit). What withstands them is not proven private: stronger ones exist. "
        "These numbers are exact and about the patients trained on: no differential privacy covers them."
    )
    return section("Audit", facts(rows), lead)


def _canary(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return [("canary", "no differential privacy, so no claim to hold one against")]
    verdict = "REFUTED: an error in the program" if found["contradicts"] else "not contradicted"
    if found["largest_possible"] <= found["claimed_epsilon"]:
        verdict = f"cannot be refuted by so few trials, which show at most {found['largest_possible']:.3g}"
    left_out = f"; not tried: {found['left_out']}" if found.get("left_out") else ""
    return [
        (
            "canary",
            f"epsilon at least {found['lower_bound']:.3g} (confidence {found['confidence']:g}, {found['trials']} "
            f"trials each); {found['claimed_epsilon']:.3g} is claimed: {verdict}{left_out}",
        )
    ]


def _membership(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, title in (("loss", "membership by loss"), ("loss_change", "membership by change of loss")):
        row = found[name]
        error = "" if row["auc_error"] is None else f" ± {row['auc_error']:.3f}"
        rows.append(
            (
                title,
                f"AUC {row['auc']:.3f}{error} (0.5 is chance), largest advantage {row['advantage']:.3f}; "
                f"{row['members']} patients trained on, {row['others']} others",
            )
        )
    if "allowed_auc" in found:
        allowed = f"AUC {found['allowed_auc']:.3f}, advantage {found['allowed_advantage']:.3f}"
        rows.append(("what the guarantee allows at most", allowed))
    return rows
