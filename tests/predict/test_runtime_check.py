"""Dice by an encoder outside JAX against Dice by JAX."""

import pytest

from medvfm_jax.predict.runtime_check import DICE_BOUND, RuntimeCheck, in_words


def rows(name, dice):
    return [{"case": name, "patient": name, "label": "nucleus", "dice": dice}]


def test_cases_lie_evenly_among_all_and_are_no_more_than_there_are():
    names = [f"{i:02d}" for i in range(11)]
    assert RuntimeCheck(names, 3).names == {"00", "05", "10"}
    assert RuntimeCheck(names, 99).names == set(names)
    assert RuntimeCheck(names, 0).names == frozenset()


def test_the_paired_difference_and_its_bound():
    check = RuntimeCheck("abc", 3)
    for name, here, in_jax in [("a", 0.80, 0.81), ("b", 0.50, 0.53), ("c", 0.90, 0.88)]:
        check.add(rows(name, here), rows(name, in_jax))
    record = check.record()
    # By hand: differences -0.01, -0.03, +0.02; Student's t with 2 degrees of freedom has 4.3027 at 97.5 %.
    half = 4.30265 * 0.0251661 / 3**0.5
    assert record["dice_patients"] == 3
    assert record["dice_minus_jax"] == pytest.approx(-0.02 / 3)
    assert record["dice_minus_jax_low"] == pytest.approx(-0.02 / 3 - half, rel=1e-5)
    assert record["dice_minus_jax_high"] == pytest.approx(-0.02 / 3 + half, rel=1e-5)
    assert in_words(record, "onnxruntime-int8").startswith(
        "warning: Dice of onnxruntime-int8 minus JAX: -0.0067"
    )
    assert record["dice_bound"] == DICE_BOUND == 0.005
    better = record | {"dice_minus_jax": -0.0049}
    assert not in_words(better, "litert").startswith("warning")
    assert in_words(record | {"dice_minus_jax": 0.0051}, "litert").startswith("warning")  # other masks, too


def test_patients_that_one_encoder_alone_gives_a_dice_are_counted():
    check = RuntimeCheck("ab", 2)
    check.add(rows("a", 0.8), rows("a", 0.8))
    check.add(rows("b", 0.0), rows("b", None))
    assert "n = 1, not among them 1 patient with a Dice by one of both alone" in in_words(
        check.record(), "litert"
    )


def test_one_patient_has_no_interval_and_none_is_said():
    check = RuntimeCheck("a", 8)
    check.add(rows("a", 0.8), rows("a", 0.8))
    assert check.record()["dice_minus_jax_low"] is None
    assert in_words(check.record(), "litert") == "Dice of litert minus JAX: +0.0000, n = 1"
    empty = RuntimeCheck("a", 8)
    empty.add(rows("a", None), rows("a", None))
    assert empty.record() == {}
    assert "no checked case has a Dice" in in_words(empty.record(), "litert")


def test_cases_that_only_one_of_both_encoders_gives_a_dice_are_said_and_do_not_stop_an_evaluation():
    # Without the object in the reference, an empty mask has no Dice and a stray pixel has 0.
    check = RuntimeCheck("a", 8)
    check.add(rows("a", 0.0), rows("a", None))
    assert check.record() == {}
    assert "no checked case has a Dice by both" in in_words(check.record(), "onnxruntime-int8")
