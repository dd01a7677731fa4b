"""Data whose batches say which task an image is of, where the adapter knows tasks."""

import dataclasses
from collections.abc import Callable

from medvfm_jax.adapters.task_tables import knows_tasks, tasks_of
from medvfm_jax.data.site_tasks import described
from medvfm_jax.train.assemble import Assembled
from medvfm_jax.train.training_data import SplitData


def with_site_tasks(source: SplitData, assembled: Assembled, say: Callable[[str], None]) -> SplitData:
    """The data with the task of each site, if the adapter has several; says which, and what no image will teach."""
    if not knows_tasks(assembled.adapter):
        return source
    tasks = tasks_of(assembled.adapter)
    say(described(tasks))
    if not tasks:
        return source
    taught = {tasks[source.dataset.case(case).site] for case in source.split.train}
    if untaught := [site for site, task in tasks.items() if task not in taught]:
        say(f"no training image is of the task of {', '.join(untaught)}, which keeps what it starts with")
    return source._replace(dataset=dataclasses.replace(source.dataset, tasks=tasks))
