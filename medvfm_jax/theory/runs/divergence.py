"""How far domains, sites of a dataset or two datasets, are from each other as a frozen encoder sees them."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Dataset
from medvfm_jax.few_shot.dense_features import pictures_of
from medvfm_jax.printable import counted
from medvfm_jax.settings.analyze import DivergenceConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.domain_bound import DomainBound, LabelledDomain, domain_bounds
from medvfm_jax.theory.frechet import squared_frechet
from medvfm_jax.theory.maximum_mean_discrepancy import gaussian_kernel, squared_mmd
from medvfm_jax.theory.permutation import Tested, permutation_test
from medvfm_jax.theory.proxy_distance import proxy_a_distance
from medvfm_jax.theory.runs.pictures import Sample, open_encoder, spread, training_cases
from medvfm_jax.theory.runs.points import features_at, labelled_points
from medvfm_jax.theory.sliced_wasserstein import directions, squared_sliced_wasserstein
from medvfm_jax.train.dense_encoder import BadFeatures, DenseEncoder

_LEAST = 6  # patients of a domain


class Distance(NamedTuple):
    """How far two domains are from each other, each number beside what it is by chance.

    Attributes:
        model: that sees them.
        first: a domain.
        second: another.
        images: of each.
        mmd: squared maximum mean discrepancy, Gaussian kernel.
        a_distance: proxy A-distance, 0 to 2.
        frechet: squared Fréchet distance, in units of the total variance of both together.
        wasserstein: squared sliced Wasserstein distance, in the same units; times the number of features, so that a
            shift counts as in the Fréchet distance.
    """

    model: str
    first: str
    second: str
    images: tuple[int, int]
    mmd: Tested
    a_distance: Tested
    frechet: Tested
    wasserstein: Tested


class SiteBound(NamedTuple):
    """What the error of one domain's head on another is made of, as a model sees both.

    Attributes:
        model: that sees them.
        source: domain that the head is fitted on.
        target: domain that it is asked about.
        terms: of the bound, and the error itself.
    """

    model: str
    source: str
    target: str
    terms: DomainBound


class DivergenceResult(NamedTuple):
    """Every pair of domains.

    Attributes:
        domains: name -> patients whose picture was looked at.
        left_out: domains with too few patients -> how many.
        permutations: random divisions behind the p-values.
        pairs: of each model.
        bounds: of each model and ordered pair, where points were asked for.
    """

    domains: dict[str, int]
    left_out: dict[str, int]
    permutations: int
    pairs: tuple[Distance, ...]
    bounds: tuple[SiteBound, ...] = ()


def analyze_divergence(
    config: DivergenceConfig, say: Callable[[str], None] = lambda text: None
) -> DivergenceResult:
    """Compare the sites of a dataset, or two datasets, by the mean features of one picture of each patient.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Four distances of each pair of domains, with p-values of random divisions of their patients.

    Raises:
        BadConfig: data of one site without others to compare with, or fewer than two domains with enough patients.
        BadFeatures: features that are constant over the patients.
        NoTerms: points of which a bound says nothing.
        MedvfmError: settings, data or weights that do not fit.
    """
    domains = _domains(config, say)
    left_out = {name: len(cases) for name, (_, cases) in domains.items() if len(cases) < _LEAST}
    for name, patients in left_out.items():
        say(
            f"note: {name} has {counted(patients, 'patient')} in the training part, fewer than {_LEAST}; left out"
        )
    kept = {
        name: (of, spread(cases, config.cases))
        for name, (of, cases) in domains.items()
        if name not in left_out
    }
    if len(kept) < 2:
        raise BadConfig(
            f"{counted(len(kept), 'domain')} with at least {_LEAST} patients in the training part; two are needed: "
            "give another dataset with --against."
        )
    samples = {name: _sample(of, cases) for name, (of, cases) in kept.items()}
    labels = {tuple(sample.dataset.labels) for sample in samples.values()}
    if config.points and len(labels) > 1:
        raise BadConfig(
            "The datasets have other labels, so that one has no head that the other could use; leave out --points."
        )
    pictures = {name: sample.pictures for name, sample in samples.items()}
    encoders, pairs, bounds = {name: open_encoder(name, config.offline) for name in config.models}, [], []
    for model, encoder in encoders.items():
        say(f"{model}: {sum(map(len, pictures.values()))} pictures of {len(kept)} domains")
        seen = {name: np.stack([encoder.mean(one) for one in some]) for name, some in pictures.items()}
        pairs += [_distance(config, model, a, b, seen) for a, b in itertools.combinations(kept, 2)]
        if config.points:
            found = {name: _labelled(encoder, sample, config.points) for name, sample in samples.items()}
            bounds += [SiteBound(model, a, b, terms) for (a, b), terms in domain_bounds(found).items()]
    sizes = {name: len(cases) for name, (_, cases) in kept.items()}
    return DivergenceResult(sizes, left_out, config.permutations, tuple(pairs), tuple(bounds))


def _sample(dataset: Dataset, cases: list[str]) -> Sample:
    found = [pictures_of(dataset, case, slices=1)[0] for case in cases]
    return Sample(dataset, tuple(cases), tuple(p for p, _ in found), tuple(label for _, label in found))


def _labelled(encoder: DenseEncoder, sample: Sample, each: int) -> LabelledDomain:
    points = labelled_points(sample, each)
    return LabelledDomain(features_at(encoder, sample, points), points.classes, points.patients)


def _domains(config: DivergenceConfig, say: Callable[[str], None]) -> dict[str, tuple[Dataset, list[str]]]:
    """Name -> dataset and one case of each patient of its training part."""
    source, cases = training_cases(config, config.data, say)
    if config.against is None:
        found: dict[str, tuple[Dataset, list[str]]] = {}
        for case in _one_of_each_patient(source.dataset, cases):
            found.setdefault(source.dataset.case(case).site, (source.dataset, []))[1].append(case)
        if len(found) < 2:
            raise BadConfig(
                f"{source.dataset.name} has one site; give a dataset to compare it with by --against."
            )
        return dict(sorted(found.items()))
    other, others = training_cases(config, config.against, say)
    name, second = source.dataset.name, other.dataset.name
    return {
        name: (source.dataset, _one_of_each_patient(source.dataset, cases)),
        second if second != name else f"{second} (against)": (
            other.dataset,
            _one_of_each_patient(other.dataset, others),
        ),
    }


def _one_of_each_patient(dataset: Dataset, cases: list[str]) -> list[str]:
    return list({dataset.case(case).patient: case for case in reversed(cases)}.values())[::-1]


def _distance(config: DivergenceConfig, model: str, a: str, b: str, seen: Mapping[str, NDArray]) -> Distance:
    x = np.concatenate([seen[a], seen[b]]).astype(np.float64)
    first = np.arange(len(x)) < len(seen[a])
    x = x - x.mean(0)
    total = np.square(x).sum(1).mean()
    constant = not total > 1e-12 * max(np.square(seen[a]).sum(1).mean(), 1e-300)
    x, rng = x / max(total**0.5, 1e-300), np.random.default_rng(config.seed)
    try:
        kernel = gaussian_kernel(np.zeros_like(x) if constant else x)
    except ValueError as error:
        raise BadFeatures(
            f"{model} has the same features for all or most pictures of {a} and {b}, which have no distance; look with "
            "another model."
        ) from error
    along = x @ directions(x.shape[1], config.directions, rng)

    def tested(statistic: Callable[[NDArray], float]) -> Tested:
        return permutation_test(statistic, first, config.permutations, rng)

    return Distance(
        model, a, b, (len(seen[a]), len(seen[b])),
        tested(lambda part: squared_mmd(kernel, part)),
        tested(lambda part: proxy_a_distance(x, part)),
        tested(lambda part: squared_frechet(x[part], x[~part])),
        tested(lambda part: x.shape[1] * squared_sliced_wasserstein(along[part], along[~part])),
    )  # fmt: skip
