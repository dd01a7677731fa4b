"""Text that came out of files, made fit for a terminal: no control characters, no name of a megabyte."""

import re

LONGEST_NAME = 200  # characters of a key or another name that are shown
LONGEST_WORD = 300  # of a run without white space, a path for example
LONGEST_TEXT = 6000
# C0 and C1 controls but for tab and line end, line separators, changes of the writing direction, lone surrogates
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def printable(text: str) -> str:
    r"""Control characters as their escapes (ESC as \x1b), and long words and texts cut with their length."""
    text = _LONG_WORD.sub(lambda word: shortened(word[0], LONGEST_WORD), text)
    text = shortened(text, LONGEST_TEXT)
    return _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """The text, or of one longer than ``longest`` the beginning, how many characters it has, and the end."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]}...({len(text)} characters)...{text[-end:]}"


def counted(number: int, word: str) -> str:
    """ "1 case", "3 cases", "1,000 cases"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
