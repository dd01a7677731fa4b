"""Run files that were damaged or written by somebody else: a report, or one sentence of this project's own error."""

import json
import shutil
import time

import numpy as np
import pytest

from medvfm_jax.report import load, render
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import CONFIG, METRICS, SCORES
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts
from tests.json_mutations import variants
from tests.report import test_federated_sections as federated_sections
from tests.report.synthetic_run import write_run

FEW, MANY = 60, 2000


@pytest.fixture(scope="module", params=["adapt", "federate"])
def run(request, tmp_path_factory):
    """A run directory whose files are replaced one at a time, without pictures, which take longer than all else."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    write_run(folder)
    shutil.rmtree(folder / "overlays", ignore_errors=True)
    lines = (folder / METRICS).read_text().splitlines()[:12]
    if request.param == "federate":
        run_directory.write_json(folder / CONFIG, federated_sections.settings())
        lines = [json.dumps(line) for line in federated_sections.LINES]
    (folder / METRICS).write_text("\n".join(lines) + "\n")
    scores = json.loads((folder / SCORES).read_text())
    scores["cases"] = scores["cases"][:8]
    run_directory.write_json(folder / SCORES, scores)
    return folder


def outcome(call):
    """None if it worked, else the sentence; any error but the project's own goes through."""
    try:
        call()
        return None
    except MedvfmError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    return sentence


def readers(run):
    """Everything that reads a file of a run directory."""
    yield lambda: render([load(run)]).encode()
    yield lambda: run_directory.finished(run)
    yield lambda: run_directory.claim(run, {"seed": 0, "resolved": {"split": {}}}, resume=True)
    yield lambda: run_directory.read_metrics(run)


def try_all(run, count, seed):
    tried, refused = 0, 0
    artifacts.save_delta(run / run_directory.DELTA, {"layer": {"bias": np.zeros(1, np.float32)}}, {})
    for name in (CONFIG, SCORES, METRICS):
        good = (run / name).read_bytes()
        if name == METRICS:
            lines = good.splitlines()
            files = (
                b"\n".join([*lines[:k], bad, *lines[k + 1 :]]) + b"\n"
                for k in (0, len(lines) // 2, len(lines) - 1)
                for bad in variants(json.loads(lines[k]), count // 3, seed + k)
            )
        else:
            files = variants(json.loads(good), count, seed)
        try:
            for bad in files:
                (run / name).write_bytes(bad)
                for read in readers(run):
                    try:
                        refused += outcome(read) is not None
                    except Exception as error:
                        pytest.fail(
                            f"{type(error).__name__}: {error} out of {name}: {bad[:3000]!r}", pytrace=False
                        )
                    tried += 1
        finally:
            (run / name).write_bytes(good)
    return tried, refused


def test_only_the_projects_own_error_comes_out(run):
    tried, refused = try_all(run, FEW, seed=1)
    assert tried == 4 * 3 * FEW
    assert FEW < refused < tried  # some are harmless, many are not
    assert outcome(lambda: render([load(run)])) is None


@pytest.mark.slow
def test_only_the_projects_own_error_comes_out_of_thousands(run):
    start = time.monotonic()
    tried, refused = try_all(run, MANY, seed=2)
    print(f"{tried} readings, {refused} refused, {time.monotonic() - start:.0f} s")
    assert refused > MANY
