"""The tutorials run from top to bottom and print what they promise; ``make docs`` runs them too."""

import re

import pytest

from experiments.site_pages import TUTORIALS, run, tutorials

# Whole runs of small models take half a minute each; the others a few seconds.
QUICK = ("plan_a_pod", "private_round")


def printed(name: str) -> str:
    return "\n".join(run(TUTORIALS / f"{name}.py"))


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of the first match of a pattern, as numbers."""
    return [float(group) for group in re.search(pattern, text).groups()]


def test_every_tutorial_is_run_here():
    slow = {"adapt_your_folder", "federated_round", "own_adapter", "published_predictions"}
    theory = {f"theory_{family}" for family in ("features", "gradients", "runs", "sites")}
    assert {path.stem for path in tutorials()} == slow | theory | set(QUICK)


def test_a_private_round_reaches_its_epsilon_and_less_than_one_without_noise():
    text = printed("private_round")
    assert "(8, 1e-05)-differential privacy of one client" in text
    exact, noised = numbers(r"without noise: ([\d.]+)\n.*epsilon 8: +([\d.]+)", text)
    assert exact < 0.01 < noised < 1


def test_a_plan_counts_what_trains():
    trains, total = numbers(
        r"trains ([\d,]+) of ([\d,]+)".replace(",]", "]"), printed("plan_a_pod").replace(",", "")
    )
    assert 0 < trains < total


def test_features_tell_the_sites_apart():
    text = printed("theory_features")
    alike, evidence = numbers(r"pictures: ([\d.]+)(?:.|\n)*?lite-tiny-test: LogME (-[\d.]+)", text)
    assert 0 < alike < 1
    assert evidence < 0
    distance, chance, p = numbers(r"bright, dark: MMD² ([\d.]+), by chance (-?[\d.]+), p ([\d.]+)", text)
    assert distance > 5 * abs(chance)
    assert p <= 0.05


@pytest.mark.slow
def test_gradients_choose_places_and_have_a_spectrum():
    text = printed("theory_gradients")
    assert re.search(r"chosen: mask_decoder/transformer/", text)
    assert 0 < numbers(r"linear: 528 numbers, alignment ([\d.]+)", text)[0] <= 1
    assert numbers(r"largest eigenvalue [\d.e-]+, trace [-\d.e]+, (\d+) products", text) == [4]


@pytest.mark.slow
def test_sites_of_one_kind_of_disc_agree_and_drift_little():
    text = printed("theory_sites")
    assert 0 < numbers(r"cosine of bright and dark: (-?[\d.]+)", text)[0] <= 1
    found = re.findall(r"(\d) steps: drift ([\d.]+) % predicted, ([\d.]+) % measured", text)
    assert [steps for steps, _, _ in found] == ["1", "2", "4"]
    assert float(found[0][1]) == 0 < float(found[2][1])


@pytest.mark.slow
def test_runs_are_beside_what_was_predicted():
    text = printed("theory_runs")
    predicted, measured = numbers(r"32 pictures: ([\d.]+) predicted, ([\d.]+) measured", text)
    assert predicted == pytest.approx(measured, abs=0.02)
    assert len(re.findall(r"528 trained numbers, Dice 0\.\d+", text)) == 2
    assert "0 failed" in text


@pytest.mark.slow
def test_published_predictions_are_asked_again():
    text = printed("published_predictions")
    place, kind = numbers(r"place explains (\d+) %(?:.|\n)*?type explains (\d+) %", text)
    assert place + kind <= 101
    assert len(re.findall(r"LogME -[\d.]+", text)) == 2
    assert numbers(r"K = 8: expected ([\d.]+) times", text) == [7]


def test_the_code_of_each_published_prediction_is_short():
    """What asks is to be read beside the paper: at most 60 lines from one to the next."""
    text = (TUTORIALS / "published_predictions.py").read_text(encoding="utf-8")
    parts = re.split(r"^# ## ", text, flags=re.MULTILINE)[1:]
    assert len(parts) == 3
    for part in parts:
        code = [line for line in part.splitlines() if line.strip() and not line.startswith("#")]
        assert len(code) < 60


@pytest.mark.slow
def test_a_folder_is_adapted_and_scored():
    text = printed("adapt_your_folder")
    assert "delta.safetensors" in text
    assert 0 <= numbers(r"foreground: Dice ([\d.]+), n = 2", text)[0] <= 1
    assert "report.html" in text


@pytest.mark.slow
def test_an_own_adapter_learns_and_is_scored():
    text = printed("own_adapter")
    first, last = numbers(r"first five steps ([\d.]+), of the last five ([\d.]+)", text)
    assert last < 0.9 * first
    before, after = numbers(r"pretrained: Dice ([\d.]+).*\nadapted: Dice ([\d.]+)", text)
    assert before != after


@pytest.mark.slow
def test_federated_rounds_lower_the_loss():
    text = printed("federated_round")
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
