"""Options of `medvfm analyze`."""

from dataclasses import dataclass

from medvfm_jax.settings.analyze import (
    AblateConfig,
    AttentionDistanceConfig,
    BarrierConfig,
    BoundConfig,
    ConflictConfig,
    CurvatureConfig,
    DivergenceConfig,
    DriftConfig,
    KernelConfig,
    LandscapeConfig,
    PlacementConfig,
    RatesConfig,
    ReceptiveFieldConfig,
    ScalingConfig,
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
class Kernel(KernelConfig):
    """How fast adapters can learn before any is trained, from their empirical neural tangent kernels.

    Example: medvfm analyze kernel --data data/dsb2018 --model lite-medsam --adapters lora decoder layernorm

    Gradients of a few logits of each training image are taken with respect to what each adapter trains. Their products
    say how far a first step lowers the loss, along how many directions training can move, and what share of the
    residual a linearised model would have left.
    """


@dataclass(frozen=True)
class Curvature(CurvatureConfig):
    """How curved the loss is in what is trained: largest eigenvalues, trace and spectral density.

    Example: medvfm analyze curvature --run runs/a --cases 4

    The mean loss of a few training images is looked at where a run ended, or before training with --data, --model and
    --adapter. Its second derivatives are known by products with vectors alone (stochastic Lanczos quadrature).
    """


@dataclass(frozen=True)
class Barrier(BarrierConfig):
    """Whether the loss rises on the straight line between two trained adapters.

    Example: medvfm analyze barrier --runs runs/site_a runs/site_b

    Both are of one model and adapter, trained at two sites or from two seeds. The mean loss of training images of both
    is looked at between them: where it rises above the line between its ends, averaging them costs that much.
    """


@dataclass(frozen=True)
class Landscape(LandscapeConfig):
    """What the loss is like around a run: on a plane of two random directions through what was trained.

    Example: medvfm analyze landscape --run runs/a

    Every filter of a direction is as long as that of what was trained, so that runs can be compared. The losses of a
    few validation images go into landscape.json in the folder of the run, and landscape.svg draws them.
    """


@dataclass(frozen=True)
class Bound(BoundConfig):
    """What the expected error of a trained adapter is at most, by its error in training and what it has learnt.

    Example: medvfm analyze bound --run runs/a --cases 64

    PAC-Bayes bounds of 1 - Dice for noise around what was trained, and bounds for the adapter with numbers rounded to
    a few bits. They hold for new patients of the same kind, with one picture each; a bound of 1 says nothing.
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
    Example: medvfm analyze divergence --data data/dsb2018 --points 32

    The mean features of one picture of each patient are compared: maximum mean discrepancy, proxy A-distance, Frechet
    and sliced Wasserstein distance, each beside what it is for random divisions of the same patients. With
    --points also the error of a linear head of one site on each other, beside the terms of its bound.
    """


@dataclass(frozen=True)
class ReceptiveField(ReceptiveFieldConfig):
    """How much of a picture one place of an encoder's map depends on: the effective receptive field.

    Example: medvfm analyze receptive-field --models lite-medsam dinov2-s --data data/dsb2018

    The middle place of the map is differentiated with respect to the input. The table has the standard deviation of
    the magnitudes around that place, and the side of the square that holds 95 % of them.
    """


@dataclass(frozen=True)
class AttentionDistance(AttentionDistanceConfig):
    """How far the places are that attention connects, for each layer of frozen encoders.

    Example: medvfm analyze attention-distance --data data/dsb2018 --models lite-medsam dinov2-s

    The distance from a place to those it attends to, weighted by attention, in sides of a token, beside that of
    attention that is the same everywhere in the window or picture that a query sees.
    """


@dataclass(frozen=True)
class Conflict(ConflictConfig):
    """Which sites of some data pull a model apart, and which help each other, before anything is trained.

    Example: medvfm analyze conflict --data data/dsb2018 --model lite-medsam --adapter decoder

    The gradient of the loss at the start is taken on a few training images of each site. The tables have: cosines of
    these gradients, beside the cosine of each site's own two halves, which is what chance leaves of 1; and what a step
    for one site does to the loss of the others. Sites are grouped by either.
    """


@dataclass(frozen=True)
class Drift(DriftConfig):
    """How many local steps sites can take before their average leaves the path of training on all data.

    Example: medvfm analyze drift --data data/dsb2018 --model lite-medsam --adapter decoder --local-steps 2 4 8

    Gradients and second derivatives of each site's loss at the start give the drift to first order. Plain gradient
    steps are then taken, at every site and on all data, and both are compared.
    """


@dataclass(frozen=True)
class Scaling(ScalingConfig):
    """How much better more labelled patients would make it: a scaling law of a learning curve.

    Example: medvfm analyze scaling --curve runs/fewshot/learning_curve.json --at 64 128 --fit-up-to 16

    1 - Dice is fitted by a floor and a power of the number of patients. Sizes above --fit-up-to are predicted, and
    compared where they were measured.
    """


@dataclass(frozen=True)
class Rates(RatesConfig):
    """What a federated run will send, and what its codec and its noise take from a round, before it starts.

    Example: medvfm analyze rates --model lite-medsam --presets decoder lora --clients 20 --rounds 100 --epsilons 1 8

    From shapes alone, without weights or data: bytes of each codec and a bound on its error, and for each epsilon the
    noise beside the largest signal, with how few numbers or how many clients would make them equal.
    """


@dataclass(frozen=True)
class Ablate(AblateConfig):
    """A grid of runs, what theory predicts of each before its training, and whether the order is the same.

    Example: medvfm analyze ablate --grid grid.json --out runs/ablation

    Every combination of what varies is predicted, trained for each seed and scored. Seeds train as one program where
    the encoder is frozen or the device is no CPU. The command can be given again: what is there is kept. Failed cells
    are listed, in the table and on the page.
    """


AnalyzeArgs = (
    Placement
    | Kernel
    | Curvature
    | Barrier
    | Landscape
    | Bound
    | Similarity
    | Transferability
    | Divergence
    | ReceptiveField
    | AttentionDistance
    | Conflict
    | Drift
    | Scaling
    | Rates
    | Ablate
)
