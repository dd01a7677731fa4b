"""Options of `medvfm analyze`."""

from dataclasses import dataclass

from medvfm_jax.settings.analyze import (
    DivergenceConfig,
    PlacementConfig,
    ReceptiveFieldConfig,
    SimilarityConfig,
    TransferabilityConfig,
)


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


@dataclass(frozen=True)
class Transferability(TransferabilityConfig):
    """Which model or checkpoint to start from: LogME and H-score of frozen features, beside cheap probes.

    Example: medvfm analyze transferability --data data/dsb2018 --models lite-medsam dinov2-s runs/a

    All models are asked about the same labelled pixels. LogME is the evidence of the classes under a linear model of
    the features, the H-score how far the classes lie apart in them; a ridge classifier and the nearest neighbour are
    scored on patients they were not fitted on.
    """


@dataclass(frozen=True)
class Divergence(DivergenceConfig):
    """How far sites, or two datasets, are from each other as a frozen encoder sees them.

    Example: medvfm analyze divergence --data data/dsb2018 --models lite-medsam
    Example: medvfm analyze divergence --data data/dsb2018 --against data/Dataset004_Hippocampus

    The mean features of one picture of each patient are compared: maximum mean discrepancy, proxy A-distance, Frechet
    and sliced Wasserstein distance, each beside what it is for random divisions of the same patients.
    """


@dataclass(frozen=True)
class ReceptiveField(ReceptiveFieldConfig):
    """How much of a picture one place of an encoder's map depends on: the effective receptive field.

    Example: medvfm analyze receptive-field --models lite-medsam dinov2-s --data data/dsb2018

    The middle place of the map is differentiated with respect to the input. The table has the standard deviation of
    the magnitudes around that place, and the side of the square that holds 95 % of them.
    """


AnalyzeArgs = Placement | Similarity | Transferability | Divergence | ReceptiveField
