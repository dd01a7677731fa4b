"""Regular expressions from untrusted sources: matched in bounded time, or refused.

Python's engine tries one way to divide a text among the parts of a pattern after the other. How many ways there can be
follows from the pattern and the length of the text; nested repetitions have exponentially many.
"""

import functools
import math
import re
import warnings
from re import _parser  # type: ignore[attr-defined]  # the engine's own reading of a pattern
from typing import Any, NamedTuple

MOST_WAYS = 2_000_000  # four times ".*" in a text of 80 characters
LONGEST_PATTERN = 100_000  # characters; the paths of all layers of the largest model take a tenth
_FEW = 8  # a repetition with at most so many different numbers counts them, a longer one counts positions
_ONE_WAY = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "FAILURE"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}


class BadPattern(ValueError):
    """No regular expression, or one that may take endlessly long; the message is a clause, without a full stop."""


class _Ways(NamedTuple):
    """At most ``fixed`` times the number of ways to put ``free`` borders into the text."""

    fixed: int = 1
    free: int = 0

    def followed_by(self, other: "_Ways") -> "_Ways":
        return _Ways(self.fixed * other.fixed, self.free + other.free)

    def number(self, length: int) -> int:
        return self.fixed * math.comb(length + self.free, self.free)


@functools.lru_cache(maxsize=1024)
def matcher(pattern: str, longest: int) -> re.Pattern[str]:
    """A compiled pattern.

    Args:
        pattern: a regular expression.
        longest: characters of the longest text it will be matched with.

    Raises:
        BadPattern: it is none, is longer than ``LONGEST_PATTERN``, refers back to a group, or could be matched in more
            than ``MOST_WAYS`` ways.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"it has {len(pattern)} characters, at most {LONGEST_PATTERN} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nested sets
            ways = _sequence(_parser.parse(pattern), longest)
            if ways.number(longest) > MOST_WAYS:
                raise BadPattern("matching it may take endlessly long; write it with fewer repetitions")
            return re.compile(pattern)
    except re.error as error:
        raise BadPattern(str(error)) from error
    except (RecursionError, OverflowError) as error:
        raise BadPattern("it is nested too deep or repeats too often") from error


def _sequence(parts: Any, longest: int) -> _Ways:
    ways = _Ways()
    for operation, argument in parts:
        ways = ways.followed_by(_part(str(operation), argument, longest))
        if ways.number(longest) > MOST_WAYS:
            break  # it is refused, and larger numbers take longer
    return ways


def _part(operation: str, argument: Any, longest: int) -> _Ways:
    if operation in _ONE_WAY:
        return _Ways()
    if operation == "BRANCH":
        branches = [_sequence(branch, longest) for branch in argument[1]]
        return _Ways(sum(branch.fixed for branch in branches), max(branch.free for branch in branches))
    if operation in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return _sequence(argument[-1], longest)
    if operation == "ATOMIC_GROUP":
        return _sequence(argument, longest)
    if operation in _REPEATS:
        return _repeated(*argument, longest)
    raise BadPattern("it refers back to a group, which is not supported")


def _repeated(least: int, most: int, body: Any, longest: int) -> _Ways:
    least, most = int(least), int(most)
    once = _sequence(body, longest)
    if most > 1 and body.getwidth()[0] == 0:
        raise BadPattern("it repeats what may be nothing; write it with fewer repetitions")
    most = min(most, max(longest, least))  # every turn takes a character
    if once == _Ways():
        numbers = most - least + 1
        return _Ways(numbers) if numbers <= _FEW else _Ways(1, 1)
    if (once.fixed == 1 and least == most) or most <= _FEW:
        return _Ways(sum(once.fixed**n for n in range(least, most + 1)), once.free * most)
    return _Ways(MOST_WAYS + 1)
