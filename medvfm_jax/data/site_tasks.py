"""Which sites have one task: those that annotate the same labels, or each its own where all annotate everything."""

from collections.abc import Mapping

from medvfm_jax.data.records import Dataset


def site_tasks(dataset: Dataset) -> dict[str, int]:
    """{site: number of its task}, numbered from 0 in the order of the sites' names."""
    numbers: dict[object, int] = {}
    found: dict[str, int] = {}
    for site in sorted({case.site for case in dataset.cases}):
        everything = frozenset(name for name, value in dataset.labels.items() if value > 0)
        task = dataset.annotated.get(site, everything) if dataset.annotated else site
        found[site] = numbers.setdefault(task, len(numbers))
    return found


def described(tasks: Mapping[str, int]) -> str:
    """In words, for the user."""
    number = len(set(tasks.values()))
    if number < 2:
        return (
            "the adapter knows tasks, and these data have one: give sites.csv with several sites, or --annotated with "
            "what each site annotates"
        )
    shown = (
        ", ".join(site for site, own in tasks.items() if own == task) for task in sorted(set(tasks.values()))
    )
    return f"tasks: {'; '.join(shown)}"
