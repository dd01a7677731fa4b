"""The table of students: whom each row is compared with, sizes and times, and that the page has the figures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import distillation
from experiments.covering_tests import ROOT
from experiments.distillation import RESULTS, TEACHER, Plan, encoders, markdown, table_of
from medvfm_jax.models import build


def scores(*dice):
    cases = [
        {"case": str(n), "patient": str(n), "site": None, "label": "foreground", "dice": value}
        for n, value in enumerate(dice)
    ]
    return {"data": "cells", "provenance": {"data_sha256": "0"}, "metric_profile": "strict", "cases": cases}


def test_students_are_compared_with_their_teacher_and_with_themselves_without_one(monkeypatch):
    times = {"teacher-net": {"jax": 2.0, "onnx": 1.0}, "small": {"jax": 0.5, "litert": 0.1}}
    found = {name: {"parameters": 2_000_000, "seconds": seconds} for name, seconds in times.items()}
    monkeypatch.setattr(distillation, "encoders", lambda models, rounds: found)
    plan = Plan("cells", teacher="teacher-net", students=("small",))
    rows = {TEACHER: scores(0.9, 0.8), "small task": scores(0.8, 0.8), "small plain": scores(0.6, 0.8)}
    table = table_of(plan, rows, {})
    assert table["networks"][TEACHER]["minus"] == {}
    with_teacher, without = (table["networks"][f"small {recipe}"]["minus"] for recipe in ("task", "plain"))
    assert with_teacher[TEACHER]["difference"] == pytest.approx(-0.05)
    assert with_teacher["plain"]["difference"] == pytest.approx(0.1)
    assert without[TEACHER]["difference"] == pytest.approx(-0.15)
    assert "plain" not in without
    assert "| small task | 2.0 M | jax 0.25 | 0.800 (" in markdown(table)


@pytest.mark.slow
def test_encoders_are_timed_in_what_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path))
    seen = []

    def no_file(model, params, *, to):
        seen.append(to)
        raise distillation.CannotExport("not installed")

    monkeypatch.setattr(distillation, "export_encoder", no_file)
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(distillation, "time", SimpleNamespace(process_time=lambda: next(clock)))
    model = build("lite-tiny-test")
    assert encoders({"lite-tiny-test": model}, 3) == {
        "lite-tiny-test": {"parameters": model.parameters, "seconds": {"jax": 1.0}}
    }
    assert seen == ["onnx", "litert"]


def test_the_documentation_has_the_figures_of_the_file():
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for line in markdown(table).splitlines():
        assert line in page
