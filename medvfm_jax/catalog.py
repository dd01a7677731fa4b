"""Things that are chosen by name: look one up, list them, and name the nearest to a name that is not there."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:  # it imports JAX, for which the command line does not wait to name the nearest option
    from medvfm_jax.types import MedvfmError

_T = TypeVar("_T")


class Catalog(Mapping[str, _T]):
    """name -> record, read-only and in the order given.

    Records say of themselves what they are: by a ``description``, or a function (the record, or its ``make``) by the
    first paragraph of its docstring.

    >>> "samed" in SYSTEMS, SYSTEMS["samed"].description, SYSTEMS.names(), SYSTEMS.describe()
    """

    def __init__(self, kind: str, records: Mapping[str, _T], error: "type[MedvfmError]"):
        """kind: what is in it, in a few words. error: raised for a name that is not."""
        self._kind, self._records, self._error = kind, dict(records), error

    def __getitem__(self, name: str) -> _T:
        """Return a record by name; raises the error of the catalog, with the nearest name."""
        try:
            return self._records[name]
        except (KeyError, TypeError):
            shown = f"{name!s:.80}"
            raise self._error(f"There is no {self._kind} '{shown}'{did_you_mean(shown, self)}.") from None

    def __contains__(self, name: object) -> bool:
        """Whether the name is in the catalog."""
        return isinstance(name, str) and name in self._records

    def get(self, name: object, default: Any = None) -> Any:
        """Return a record by name, the default for a name that is not there."""
        return self._records[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._records)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._records)

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._records)

    def describe(self) -> dict[str, str]:
        """{name: one line on what it is and where it comes from}."""
        return {name: description_of(record) for name, record in self._records.items()}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, None if none resembles it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", the nearest is 'rank'", ", known are ..." or ", there are none" to end an error with."""
    known = list(known)
    if near := nearest(name, known):
        return f", the nearest is '{near}'"
    return f", known are {', '.join(known)}" if known else ", there are none"


def description_of(record: Any) -> str:
    """One line on a record of a catalog, "" if it says nothing of itself."""
    if isinstance(given := getattr(record, "description", None), str):
        return given
    made = getattr(record, "make", record)
    text = (inspect.getdoc(made) or "") if callable(made) else ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def differences_of(record: Any) -> str:
    """What differs from the publication of a method, "" if nothing is known.

    Records have a field for it; the docstring of a function says it under References, from "Differs: " or
    "Interpretation: " to the end of the entry.  "Interpretation: " stands first where the publication leaves open, or
    nobody has seen, what the method does, so that ours is one reading of several.
    """
    if isinstance(given := getattr(record, "differences", None), str):
        return given
    made = getattr(record, "make", record)
    text = " ".join((inspect.getdoc(made) or "").split()) if callable(made) else ""
    found = re.search(r"(?:Differs: (?=\w)|(?=Interpretation: )).*", text)
    return found[0].removeprefix("Differs: ").rstrip(".") if found else ""


def fidelity_of(record: Any) -> Literal["exact", "differs", "interpretation"]:
    """Whether a method is that of its publication, as far as ``differences_of`` knows."""
    text = differences_of(record)
    if not text:
        return "exact"
    return "interpretation" if text.startswith("Interpretation: ") else "differs"
