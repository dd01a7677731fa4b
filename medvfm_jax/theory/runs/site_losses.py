"""Training images of each site, and the loss of a model on them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.crosstask import task_affinity
from medvfm_jax.printable import counted
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.curvature import hessian_product
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training import Run
from medvfm_jax.types import Batch, Delta


def site_batches(run: Run, images: int, say: Callable[[str], None]) -> dict[str, list[Batch]]:
    """Site -> batches of one training image each, as many as asked for or as there are."""
    dataset, examples = run.data.source.dataset, run.data.train
    sites = sorted({dataset.case(example.case).site for example in examples})
    if not 2 <= len(sites) <= task_affinity.MOST_TASKS:
        raise BadConfig(
            f"The training part of {dataset.folder} has {counted(len(sites), 'site')}; 2 to {task_affinity.MOST_TASKS} "
            "are compared: a table with the columns file and site is sites.csv in the folder."
        )
    found = {}
    for site in sites:
        own = [example for example in examples if dataset.case(example.case).site == site]
        if len(own) < 2:
            raise BadConfig(
                f"Site '{site}' has one image or slice to train on, and a direction needs two: join sites in sites.csv."
            )
        if len(own) < images:
            say(f"note: site '{site}' has {len(own)} images or slices, fewer than --cases {images}")
        loader = run.data._replace(train=own).loader("none")
        found[site] = [next(loader) for _ in range(min(images, len(own)))]
    return found


class SiteLosses(NamedTuple):
    """Compiled functions of a delta and a batch.

    value: the loss.  value_and_gradient: it with its gradient.  product: (delta, batch, v) -> Hessian times v.
    """

    value: Callable[..., Any]
    value_and_gradient: Callable[..., Any]
    product: Callable[..., Any]


def site_losses(run: Run, batches: dict[str, list[Batch]], say: Callable[[str], None]) -> SiteLosses:
    """The loss of a run; a frozen encoder has encoded the batches, in place."""
    assembled, config = run.assembled, run.config
    params, key = assembled.base.params, jax.random.key(config.seed)
    frozen = not touches_encoder(assembled.delta) and assembled.base.model.spec.resize != "none"
    if frozen:
        say("the encoder is frozen: each image is encoded once")
        encode = jax.jit(jax.vmap(assembled.adapted.encode, in_axes=(None, None, 0)))
        for images in batches.values():
            images[:] = [
                batch._replace(image=encode(params, assembled.delta, batch.image)) for batch in images
            ]
    loss = make_loss(assembled.adapted, assembled.objective, cached=frozen)

    def of_batch(params: Any, delta: Delta, batch: Batch) -> Any:
        return loss(params, delta, batch, key)[0]

    def product(params: Any, delta: Delta, batch: Batch, v: Delta) -> Any:
        return hessian_product(lambda at: of_batch(params, at, batch), delta, v)

    made = (of_batch, jax.value_and_grad(of_batch, argnums=1), product)
    return SiteLosses(*(functools.partial(jax.jit(function), params) for function in made))
