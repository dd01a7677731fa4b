"""Options of `medvfm analyze`."""

from dataclasses import dataclass

from medvfm_jax.settings.analyze import ConflictConfig, PlacementConfig, SimilarityConfig


@dataclass(frozen=True)
class Conflict(ConflictConfig):
    """Which sites of some data pull a model apart, and which help each other, before anything is trained.

    Example: medvfm analyze conflict --data data/dsb2018 --model lite-medsam --adapter decoder

    The gradient of the loss at the start is taken on a few training images of each site. The tables have: cosines of
    these gradients, beside the cosine of each site's own two halves, which is what chance leaves of 1; and what a step
    for one site does to the loss of the others. Sites are grouped by either.
    """


@dataclass(frozen=True)
class Placement(PlacementConfig):
    """Where in a model adapters should help most on some data, before anything is trained.

    Example: medvfm analyze placement --data data/dsb2018 --model lite-medsam --rank 4 --budget 40000

    Gradients of the loss on a few training images are taken with respect to every kernel. The table has, of kernels
    whose paths differ by numbers alone: trained numbers of an update of that rank, what its best first step gains, the
    empirical Fisher information with its standard error, and how many directions the mean gradient has.
    """


@dataclass(frozen=True)
class Similarity(SimilarityConfig):
    """How alike what several models see in the same pictures is: centred kernel alignment of their mean features.

    Example: medvfm analyze similarity --data data/dsb2018 --models lite-medsam dinov2-s runs/student

    1 is equal up to rotation and scale, 0 independent. The estimate has no bias, so it may lie a little below 0.
    """


AnalyzeArgs = Conflict | Placement | Similarity
