import pytest

from medvfm_jax.cli import console
from medvfm_jax.cli.errors import describe
from medvfm_jax.printable import printable, shortened
from medvfm_jax.types import MedvfmError


def test_what_steers_a_terminal_becomes_visible():
    assert printable("a\x1b[2Jb\x07\r\x9b1m\u202e\udcff") == r"a\x1b[2Jb\x07\r\x9b1m\u202e\udcff"
    assert printable("Größe 肝臓\n\tof 3 µm") == "Größe 肝臓\n\tof 3 µm"


def test_long_names_are_cut_with_their_length():
    assert shortened("k" * 200) == "k" * 200
    assert shortened("k" * 201) == "k" * 150 + "...(201 characters)..." + "k" * 50
    assert printable("the key " + "k" * 20_000_000 + " is odd").count("k") < 310
    assert "(20000000 characters)" in printable("k" * 20_000_000)
    assert len(printable("a b " * 10_000_000)) < 6100
    path = "/data/" + "/".join(["folder"] * 30)
    assert printable(path) == path


def test_errors_and_lines_of_commands_go_through_it(capsys):
    nasty = "name\x1b]0;owned\x07" + "k" * 1000
    for error in (MedvfmError(nasty), OSError(2, "No such file", nasty), RuntimeError(nasty)):
        sentence, _ = describe(error)
        assert "\x1b" not in sentence
        assert len(sentence) < 600
    assert "\x1b" not in str(MedvfmError(nasty))
    console.say(nasty)
    console.warn(nasty)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert r"name\x1b]0;owned\x07" in out


@pytest.mark.parametrize("code", [36, 40, 5])
def test_other_refusals_of_the_system_are_sentences(code):
    sentence, exit_code = describe(OSError(code, "so it is", "/a/b"))
    assert "/a/b" in sentence
    assert "unexpected" not in sentence
    assert exit_code == 1
