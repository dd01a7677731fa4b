"""Options of `medvfm systems`."""

from dataclasses import dataclass

from medvfm_jax.settings.records import BadConfig


@dataclass(frozen=True)
class SystemsArgs:
    """List the published ways to adapt a model, and which of them fit a model.

    Example: medvfm systems

    Example: medvfm systems --model lite-medsam --rank 8

    With --model each system is tried on the shapes of that model, without its weights: what would train, or why it
    does not fit.
    """

    model: str | None = None
    """Model to try them on, such as lite-medsam."""
    rank: int | None = None
    """Rank to try systems with that have one; by default their own."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        if self.rank is not None and self.rank < 1:
            raise BadConfig(f"rank={self.rank} is not allowed: at least 1.")
        if self.rank is not None and self.model is None:
            raise BadConfig(
                "A rank fits a model or not: say which with --model, for example --model lite-medsam."
            )
