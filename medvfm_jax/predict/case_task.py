"""Each case with the model of its task, where an adapter knows several."""

from collections.abc import Callable, Mapping
from typing import Any

from medvfm_jax.adapters.task_tables import tasks_of
from medvfm_jax.data import Case
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.train.stored_delta import task_of_site


def by_task(
    of_case: Callable[[Case], Predictor], adapter: Mapping[str, Any] | None, site: str | None = None
) -> Callable[[Case], Predictor]:
    """The predictors of cases, each for the task of the case's site, or for that of one site.

    of_case: the model of each case.  adapter: its configuration.  site: whose task all are for.
    Raises TaskUnknown, at once for ``site``, else for a case of a site that the adapter does not know.
    """
    name = "The adapter"
    if site is not None:
        task_of_site(adapter, site, name)
    if not tasks_of(adapter):
        return of_case
    known: dict[tuple[int, int], Predictor] = {}

    def chosen(case: Case) -> Predictor:
        predictor, task = of_case(case), task_of_site(adapter, site or case.site, name)
        key = id(predictor), task
        if key not in known:
            known[key] = predictor.for_task(task)
        return known[key]

    return chosen
