"""Probabilities of several runs, and who may join them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation
from medvfm_jax.predict.ensemble import EnsemblePredictor, Member, check_member
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec

SPEC = ModelSpec("patches", (2, 2, 2, 1), (2, 2, 2, 4), (2, 2, 2), resize="none", task="semantic", classes=2)
ABOUT = {"prompt": "none", "labels": {"background": 0, "a": 1}, "channel_names": ["MRI"]}


def sure(share):
    """A predictor that gives class 1 a probability everywhere."""
    return SimpleNamespace(
        spec=SPEC,
        probabilities=lambda window: np.stack([np.full(window.shape[:-1], p) for p in (1 - share, share)]),
    )


def test_the_mean_of_probabilities_decides_not_the_votes():
    found = EnsemblePredictor([sure(0.45), sure(0.45), sure(0.9)])
    window = np.zeros((2, 2, 2, 1))
    np.testing.assert_allclose(found.probabilities(window)[1], 0.6)
    assert (found.classes(window) == 1).all()
    assert found.spec is SPEC


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"metadata": ABOUT | {"labels": {"background": 0, "b": 1}}}, "its labels differ"),
        ({"metadata": ABOUT | {"channel_names": ["CT"]}}, "its channels differ"),
        ({"preparation": Preparation((1.0, 1.0, 1.0))}, "its preparation of volumes differ"),
        ({"spec": replace(SPEC, tile=64)}, "its tile differ from those of the first run"),
    ],
)
def test_runs_that_see_or_say_other_things_do_not_join(changed, what):
    first = Member(SPEC, AS_THEY_ARE, ABOUT)
    check_member(Path("b"), first, first)
    with pytest.raises(BadConfig, match=f"b cannot join the ensemble: {what}"):
        check_member(Path("b"), first._replace(**changed), first)
    with pytest.raises(BadConfig, match="without prompts"):
        check_member(Path("b"), first, first._replace(metadata=ABOUT | {"prompt": "box"}))
