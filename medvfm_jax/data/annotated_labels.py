"""Sites that annotate some of a dataset's labels: what they did not look for is no background."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.records import BadDataset, Case, Dataset
from medvfm_jax.types import IGNORE, UNANNOTATED


def with_annotated(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """The dataset with what its sites annotate, one text ``site=label,label`` for each that does not annotate all.

    Raises BadDataset for a text of another form, a site or a label that the dataset does not have, or a site twice.
    """
    if not texts:
        return dataset
    sites = sorted({case.site for case in dataset.cases})
    labels = [name for name, value in dataset.labels.items() if value > 0]
    found: dict[str, frozenset[str]] = {}
    for text in texts:
        site, equals, names = text.partition("=")
        chosen = [name.strip() for name in names.split(",")]
        if not equals or not site or "" in chosen:
            raise BadDataset(f"annotated is '{text}'; expected site=label or site=label,label.")
        if site not in sites:
            raise BadDataset(
                f"annotated names the site '{site}', and {dataset.folder} has {', '.join(sites)}; a table with sites "
                "is sites.csv in the folder."
            )
        if unknown := [name for name in chosen if name not in labels]:
            raise BadDataset(
                f"annotated gives site '{site}' the label '{unknown[0]}'; the labels are {', '.join(labels)}."
            )
        if site in found:
            raise BadDataset(f"annotated names the site '{site}' twice; give all its labels with commas.")
        found[site] = frozenset(chosen)
    if nobody := [name for name in labels if not any(name in found.get(site, labels) for site in sites)]:
        raise BadDataset(f"No site annotates '{nobody[0]}', so nothing can be learnt of it; name it for one.")
    return dataclasses.replace(dataset, annotated=found)


def unannotated(dataset: Dataset, case: Case) -> NDArray[np.int32]:
    """Class indices that nobody looked for in a case."""
    known = dataset.annotated.get(case.site)
    return np.array(
        [
            value
            for name, value in dataset.labels.items()
            if value and known is not None and name not in known
        ],
        np.int32,
    )


def hidden(label: NDArray, classes: NDArray) -> NDArray:
    """A label map in which these classes are background, as a site has it that does not annotate them."""
    return np.where(np.isin(label, classes), 0, label).astype(label.dtype) if len(classes) else label


def marked(target: NDArray, outputs: NDArray) -> NDArray:
    """Shares of classes (C, ...) with UNANNOTATED in these outputs, wherever a pixel counts."""
    if len(outputs):
        target[outputs] = np.where(target[outputs] == IGNORE, IGNORE, np.float32(UNANNOTATED))
    return target


def described(annotated: Mapping[str, frozenset[str]]) -> str:
    """In words, for the user."""
    return "; ".join(f"{site} annotates {', '.join(sorted(names))}" for site, names in annotated.items())
