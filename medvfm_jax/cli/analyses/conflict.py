"""`medvfm analyze conflict`: how the gradients of sites lie to each other, as two tables."""

from collections.abc import Callable, Sequence
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import ConflictConfig
from medvfm_jax.theory import ConflictResult, analyze_conflict


def run(config: ConflictConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the tables."""
    found = analyze_conflict(config, say)
    return found._asdict() | {"sites": [site._asdict() for site in found.sites]}, _text(found)


TOOL = Tool(ConflictConfig, run)


def _text(found: ConflictResult) -> str:
    names = [site.site for site in found.sites]
    cosines = [
        (site.site, site.images, f"{site.loss:.3g}", f"{site.norm:.3g}", f"{site.agreement:.2f}",
         *(f"{c:.2f}" for c in row))
        for site, row in zip(found.sites, found.cosine)
    ]  # fmt: skip
    gains = [(name, *(f"{100 * a:.2f}" for a in row)) for name, row in zip(names, found.affinity)]
    return "\n".join(
        [
            f"cosines of the sites' mean gradients, loss {found.objective}; halves: of a site's own two halves",
            console.table(("", "images", "loss", "norm", "halves", *names), cosines),
            f"gradient diversity {found.diversity:.3g} ({1 / len(names):.3g} if all agree, 1 if orthogonal), "
            f"dissimilarity B^2 {found.dissimilarity:.3g}",
            "",
            f"per cent of the loss of a column's site that a step for the row's takes away (rate {found.rate:.3g})",
            console.table(("step for", *names), gains),
            f"groups by cosine: {_groups(found.groups_by_cosine)}",
            f"groups by affinity: {_groups(found.groups_by_affinity)}",
            f"{sum(site.images for site in found.sites)} images of {found.data}, {found.seconds:.0f} s",
        ]
    )


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return " | ".join(", ".join(group) for group in groups)
