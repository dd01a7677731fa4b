"""Each case with the model of its task, where an adapter knows several."""

from collections.abc import Callable, Mapping
from typing import Any

from medvfm_jax.adapters.task_tables import tasks_of
from medvfm_jax.data import Case
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.train.assemble import TaskUnknown


def by_task(
    of_case: Callable[[Case], Predictor], adapter: Mapping[str, Any] | None, site: str | None = None
) -> Callable[[Case], Predictor]:
    """The predictors of cases, each for the task of the case's site, or for that of one site.

    of_case: the model of each case.  adapter: its configuration.  site: whose task all are for.
    Raises TaskUnknown, at once for ``site``, else for a case of a site that the adapter does not know.
    """
    tasks = tasks_of(adapter)
    if not tasks:
        if site is not None:
            raise TaskUnknown(f"The adapter knows one task and not '{site}'; leave --task out.")
        return of_case
    known: dict[tuple[int, int], Predictor] = {}

    def check(name: str) -> int:
        if name not in tasks:
            raise TaskUnknown(
                f"The adapter was trained on the tasks of the sites {', '.join(tasks)}, and '{name}' is none of them: "
                "name one of them with --task."
            )
        return tasks[name]

    if site is not None:
        check(site)

    def chosen(case: Case) -> Predictor:
        predictor, task = of_case(case), check(site or case.site)
        key = id(predictor), task
        if key not in known:
            known[key] = predictor.for_task(task)
        return known[key]

    return chosen
