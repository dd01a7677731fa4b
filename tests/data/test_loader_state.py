"""Positions of the loader: a run that was stopped anywhere goes on as if it had not been."""

import json

import jax
import numpy as np
import pytest

from medvfm_jax.data import (
    BadLoaderState,
    PromptConfig,
    examples,
    make_loader,
    make_phantom_dataset,
    open_dataset,
)
from medvfm_jax.types import MedvfmError
from tests.data.small_folders import SPEC, assert_one_sentence

SETTINGS = {
    "batch_size": 2,
    "seed": 7,
    "prompts": PromptConfig("mixed", 2, points=2),
    "augment": True,
    "threads": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("loader") / "cells", "cells", 5, size=24)


def loader_of(folder, *, cases=None, task="promptable", **options):
    """A loader as another process would make it: nothing is shared with an earlier one."""
    dataset = open_dataset(folder)
    found = examples(dataset, cases or dataset.by_id, SPEC, task)
    return make_loader(dataset, found, SPEC, task, **(SETTINGS | options))


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [0, 2])
def test_any_position_continues_exactly_in_another_loader(folder, threads):
    loader = loader_of(folder)
    states, batches = [], []
    for _ in range(7):  # beyond two epochs of five examples
        states.append(loader.get_state())
        batches.append(next(loader))
    other = loader_of(folder, threads=threads)
    for start in (6, 0, 3, 5, 1):
        other.set_state(states[start])
        for batch in batches[start : start + 2]:
            assert_same(batch, next(other))


def test_a_loader_with_threads_gives_the_position_of_what_was_taken_not_of_what_is_ready(folder):
    loader = loader_of(folder, threads=2)
    next(loader)
    state, expected = loader.get_state(), next(loader)
    other = loader_of(folder)
    other.set_state(state)
    assert_same(next(other), expected)


def test_a_position_survives_json_and_bytes(folder):
    loader = loader_of(folder)
    next(loader)
    text = json.dumps(loader.get_state())
    expected = next(loader)
    for state in (json.loads(text), text, text.encode()):
        loader.set_state(state)
        assert_same(next(loader), expected)


def test_going_back_gives_the_same_batch_again(folder):
    loader = loader_of(folder)
    state = loader.get_state()
    first = next(loader)
    next(loader)
    loader.set_state(state)
    assert_same(next(loader), first)


def test_the_end_is_a_position_too(folder):
    loader = loader_of(folder, epochs=1)
    assert len(list(loader)) == 3
    other = loader_of(folder, epochs=1)
    other.set_state(loader.get_state())
    with pytest.raises(StopIteration):
        next(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"batch_size": 3},
        {"augment": "flips"},
        {"prompts": PromptConfig("box", 2)},
        {"shuffle": False},
        {"epochs": 3},
        {"labels": ["foreground"]},
        {"cases": ["cell_000", "cell_001"]},
        {"task": "semantic"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_position_among_other_data_or_settings_is_refused(folder, changes):
    loader = loader_of(folder, **changes)
    with pytest.raises(BadLoaderState) as caught:
        loader.set_state(loader_of(folder).get_state())
    assert isinstance(caught.value, MedvfmError)
    assert_one_sentence(caught, "other training examples or settings")


@pytest.mark.parametrize("state", [b"", "{", b"\xff", None, [1], {}, {"position": {"next_index": 1}}])
def test_a_damaged_position_is_refused(folder, state):
    with pytest.raises(BadLoaderState) as caught:
        loader_of(folder).set_state(state)
    assert_one_sentence(caught, "damaged")


@pytest.mark.parametrize("position", [{}, 3, None, {"next_index": "two"}, {"next_index": -5}])
def test_a_position_damaged_inside_is_refused(folder, position):
    loader = loader_of(folder)
    with pytest.raises(BadLoaderState) as caught:
        loader.set_state(loader.get_state() | {"position": position})
    assert_one_sentence(caught, "damaged")
