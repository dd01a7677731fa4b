"""Every system by name: it builds on real models, runs the same under loop and vmap, and keeps what is personal."""

import json
import math
import re

import chex
import jax
import numpy as np
import optax
import pytest

from medvfm_jax import models
from medvfm_jax import systems as published
from medvfm_jax.federated import BadFederation, systems
from medvfm_jax.federated.codecs.wire import message_bits
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems import fesvibs
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.systems import configure
from tests.federated.core.test_backends import mesh
from tests.federated.systems.tiny import SPEC, N, case, leaf_names, rounds, shapes_of

OPTIONS = {
    "feddpa_f": {"global_rounds": 1},
    "fedms": {"global_rounds": 1, "ramp": 1},
    "pfedpg": {"width": 3, "slots": 2},
    "f3ocus": {"layers": 1},
}


QUICK = ("pfedpg",)  # others have a file of their own; fedsam, flap_sam and promptfl are as fedmsa


def count(tree: dict) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


NEEDS_SAM = ("fesvibs",)  # their encoders are not the toy's; the toy of test_fesvibs takes its place
ON_THE_TOY = tuple(name for name in systems.SYSTEMS.names() if name not in NEEDS_SAM)


def is_personal(leaf: str) -> bool:
    return (
        leaf.startswith(("local_lora/", "head/"))
        or leaf.endswith("_local")
        or re.fullmatch(fesvibs.OWN, leaf) is not None
    )


def taken_by(model: str) -> list[str]:
    """Systems that a model fits."""
    return [
        name for name in systems.SYSTEMS.names() if MODELS[model].family == "sam" or name not in NEEDS_SAM
    ]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in ON_THE_TOY]
)
def test_loop_and_vmap_agree_and_something_is_learnt(name: str) -> None:
    system = systems.SYSTEMS[name]
    start = case(configure(name, system.system, SPEC))
    algorithm = system.algorithm(gradient_of(start.loss), optax.sgd(0.05), **OPTIONS.get(name, {}))
    absent_3 = np.arange(N) != 3
    losses: list[float] = []
    by_vmap = rounds(algorithm, start.delta, 2, absent_3, losses=losses)
    by_loop = rounds(algorithm, start.delta, 2, absent_3, backend="loop")
    chex.assert_trees_all_close(by_loop, by_vmap, rtol=1e-9, atol=1e-11)
    assert losses[1] < losses[0]
    assert int(by_vmap[2].participants) == N - 1
    whole = (N - 1) * message_bits(by_vmap[0].delta)
    assert by_vmap[2].download_bits < whole if name == "fedpft" else by_vmap[2].download_bits == whole


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ON_THE_TOY)
def test_clients_over_devices_give_the_same(name: str) -> None:
    system = systems.SYSTEMS[name]
    start = case(configure(name, system.system, SPEC))
    algorithm = system.algorithm(gradient_of(start.loss), optax.sgd(0.05), **OPTIONS.get(name, {}))
    one, many = (
        rounds(algorithm, start.delta, 2, **p) for p in ({}, {"backend": "shard_map", "mesh": mesh(N)})
    )
    chex.assert_trees_all_close(many, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "model",
    [*(pytest.param(f"{n}-tiny-test", marks=pytest.mark.slow) for n in ("sam", "lite")), "vit-tiny-test"],
)
def test_every_system_finds_its_sites_in_every_kind_of_model(model: str) -> None:
    built, found = models.build(model), {}
    for name in taken_by(model):
        system = systems.SYSTEMS[name]
        config = configure(name, system.system, built.spec)
        assert json.loads(json.dumps(config)) == config
        parts = json.dumps(config["parts"])
        found[parts] = delta = found.get(parts) or shapes_of(name, built)
        algorithm = system.algorithm(gradient_of(lambda d, b, k: 0.0), optax.sgd(0.1))
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), delta)
        sent = leaf_names(algorithm.init_server(zeros)[0])
        kept = set(leaf_names(delta)) - set(sent)
        assert sent, name
        assert all(is_personal(leaf) for leaf in kept), name
        assert not any("local_lora" in leaf or leaf.endswith("_local") for leaf in sent), name


@pytest.mark.slow
def test_published_sizes_on_sam_vit_b() -> None:
    """FedMSA: 58.9 MB against 374.9 MB; FLAP-SAM: its two parts near their published shares of full tuning."""
    model = models.build("sam-b")
    full, msa, flap = (shapes_of(name, model) for name in ("fedsam", "fedmsa", "flap_sam"))
    assert count(full) == 93_735_472
    assert count(msa) == 4_058_340 + 24 * 295_872
    low_rank = count(flap["encoder_lora"]) + count(flap["decoder_lora"])
    assert low_rank == 32 * (12 * 2 * 2 * 768 + 2 * 2 * 2 * 256 + 5 * 2 * (256 + 128))
    assert {path.split("/")[1].rstrip("0123") for path in flap["last_layers"]} == {
        "output_upscaling_",
        "output_hypernetworks_mlps_",
        "mask_tokens",
    }
    assert count(full) / low_rank == pytest.approx(66.1, rel=0.05)
    assert count(full) / count(flap) == pytest.approx(48.9, rel=0.05)


def test_no_part_of_an_adapter_is_called_as_another_part_of_a_run() -> None:
    """``--set algorithm.mu=0.1`` is not about an adapter."""
    alone = published.SYSTEMS.values()
    for system in (*alone, *(federated.system for federated in systems.SYSTEMS.values())):
        parts = system.adapter(models.MODELS["sam-b"].spec)
        assert not parts.keys() & {"algorithm", "codec", "down_codec"}


def test_names_and_descriptions() -> None:
    assert {"fedsam", "fedmsa", "flap_sam"} <= set(systems.SYSTEMS.names()) == set(systems.SYSTEMS.describe())
    for name in systems.SYSTEMS.names():
        assert "20" in systems.SYSTEMS.describe()[name], "no source"
    with pytest.raises(BadFederation, match="no federated system 'flap-sam', the nearest is 'flap_sam'"):
        systems.SYSTEMS["flap-sam"]
