"""One sentence about words that a command does not take, from the types of its options alone."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from medvfm_jax.cli.usage import complaint, options_of
from tests.cli.test_path_options import commands


@dataclasses.dataclass
class Bake:
    bread: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BREAD")]
    oven: str
    minutes: int = 40
    heat: float | None = None
    crust: Literal["soft", "hard"] = "hard"
    slice_at: tyro.conf.UseAppendAction[tuple[tuple[int, float], ...]] = ()
    seeds: tuple[Literal["rye", "flax"], ...] = ()
    salt: bool = True
    twice: bool = False
    from_: Annotated[int, tyro.conf.arg(name="from")] = 0


@dataclasses.dataclass
class Eat:
    guests: tyro.conf.Positional[tuple[str, ...]]


GIVEN = ("rye.txt", "--oven", "big")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*GIVEN, "--minuts", "3"), "there is no option --minuts; did you mean --minutes"),
        ((*GIVEN, "--slice_att=3"), "there is no option --slice-att; did you mean --slice-at"),
        ((*GIVEN, "--salt"), "there is no option --salt; did you mean --no-salt"),
        ((*GIVEN, "--jsno"), "there is no option --jsno; did you mean --json"),
        ((*GIVEN, "--qqq"), "there is no option --qqq"),
        ((), "BREAD and --oven are missing"),
        (("--oven", "big"), "BREAD is missing"),
        (("rye.txt",), "--oven is missing"),
        ((*GIVEN, "more"), "'more' belongs to no option; quote names that contain spaces"),
        ((*GIVEN, "--twice", "more"), "'more' belongs to no option; quote names that contain spaces"),
        (("rye.txt", "--oven", "my", "big"), "'big' belongs to no option; quote names that contain spaces"),
        ((*GIVEN, "--minutes"), "--minutes needs a value"),
        ((*GIVEN, "--minutes", "3.5"), "--minutes is '3.5'; expected a whole number"),
        ((*GIVEN, "--minutes=x"), "--minutes is 'x'; expected a whole number"),
        ((*GIVEN, "--from", "x"), "--from is 'x'; expected a whole number"),
        ((*GIVEN, "--heat", "hot"), "--heat is 'hot'; expected a number"),
        ((*GIVEN, "--crust", "sft"), "--crust is 'sft'; expected soft or hard"),
        ((*GIVEN, "--slice-at", "1"), "--slice-at needs 2 values and has 1"),
        (
            (*GIVEN, "--slice-at", "1", "2", "--slice-at", "1", "x"),
            "--slice-at is '1 x'; expected a whole number, a number",
        ),
        ((*GIVEN, "--seeds", "rye", "flx"), "--seeds is 'rye flx'; expected rye or flax"),
        ((*GIVEN, "--seeds"), "--seeds needs a value"),
    ],
)
def test_the_sentence(words, sentence):
    assert complaint(Bake, words) == sentence


@pytest.mark.parametrize(
    "words",
    [
        GIVEN,
        (*GIVEN, "--heat", "None", "--minutes", "-3", "--no-salt", "--twice", "--crust=soft"),
        (*GIVEN, "--slice_at", "1", "2.5", "--slice-at", "3", "4", "--seeds", "rye", "flax", "rye"),
    ],
)
def test_words_that_fit_are_no_reason(words):
    assert complaint(Bake, words) is None
    tyro.cli(Bake, args=list(words), config=(tyro.conf.FlagCreatePairsOff,))


@dataclasses.dataclass
class EatOut:
    """As tyro calls it: eat-out."""

    place: str = "here"


def test_a_subcommand_of_two_words():
    tyro.cli(Bake | EatOut, args=["eat-out"])
    assert complaint(Bake | EatOut, ("eat-out", "--place")) == complaint(EatOut, ("--place",)) is not None
    assert complaint(Bake | EatOut, ("eatout",)) == "there is no subcommand 'eatout'; did you mean eat-out"


def test_subcommands():
    assert complaint(Bake | Eat, ()) == "say which: bake or eat"
    assert complaint(Bake | Eat, ("eet", "x")) == "there is no subcommand 'eet'; did you mean eat"
    assert complaint(Bake | Eat, ("bake", "rye.txt")) == "--oven is missing"
    assert complaint(Bake | Eat, ("eat",)) == "guests is missing"
    assert complaint(Bake | Eat, ("eat", "a", "b", "--c")) == "there is no option --c"


@pytest.mark.parametrize(
    ("words", "kind"), commands(), ids=lambda given: given[-1] if isinstance(given, tuple) else ""
)
def test_it_knows_the_options_that_the_help_shows(medvfm, words, kind):
    shown = {word.strip("[],│") for word in medvfm(*words, "--help").out.split()}
    assert {option.word for option in options_of(kind)} <= shown
    assert complaint(kind, ("--qqqqqq",)) == "there is no option --qqqqqq"


def test_a_narrow_terminal_cuts_no_word(medvfm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    word = "x" * 90
    medvfm("adapt", "--data", "d", "--steps", word).refused(
        f"--steps is '{word}'; expected a whole number", code=2
    )
