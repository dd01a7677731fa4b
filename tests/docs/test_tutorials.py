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
    slow = {"adapt_your_folder", "federated_round", "own_adapter"}
    assert {path.stem for path in tutorials()} == slow | set(QUICK)


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
