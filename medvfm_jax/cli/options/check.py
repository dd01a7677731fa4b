"""Options of `medvfm check`."""

from dataclasses import dataclass

from medvfm_jax.settings.groups import ObjectChoice
from medvfm_jax.settings.records import require_distance


@dataclass(frozen=True)
class CheckArgs:
    """Read every case of a data folder and say what is wrong with it, before anything is trained on it.

    Example: medvfm check --data data/dsb2018

    Errors would stop adapt, federate and evaluate; notes stop nothing, and should be known. The exit code is 1 with
    errors, 0 with notes alone. What was found in a case is kept until one of its files changes.
    """

    data: str
    """Folder with labelled images (nnU-Net v2, or images/ and masks/), its URL on storage (gs://, s3://), or the name
    of a built-in dataset."""
    objects: ObjectChoice | None = None
    """What simulated prompts would be about, as for `adapt`."""
    val_fraction: float = 0.15
    """Share of the patients used for validation."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test."""
    seed: int = 0
    """Seed of the split."""
    fresh: bool = False
    """Read all cases again, whatever earlier checks found."""
    offline: bool = False
    """Never touch the network."""
    allow_geometry_mismatch: float = 0.0
    """Accept label maps whose headers place a corner up to so many mm from where their image has it, as `adapt`."""
    follow_links: bool = False
    """Accept image and label files that symbolic links, or paths in dataset.json, place outside the data folder."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        require_distance(self.allow_geometry_mismatch)
