"""Scores of a volumetric model have lists that those of a model of slices have not."""

from medvfm_jax.report.record_shapes import damaged_scores

SCORES = {"summary": [], "cases": []}


def test_windows_and_runs_of_an_ensemble_are_lists_of_their_kind():
    lists = {"window": [40, 56, 40], "largest_component": ["anterior"], "ensemble": ["runs/a", "runs/b"]}
    assert damaged_scores(SCORES | lists) is None
    assert damaged_scores(SCORES | {"window": ["40"]}) == "window"
    assert damaged_scores(SCORES | {"ensemble": "runs/a"}) == "ensemble"
