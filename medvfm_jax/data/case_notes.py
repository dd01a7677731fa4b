"""What a user should know about how cases were read: collected while reading; the check counts and says them."""

import threading
from collections.abc import Mapping

_NAMED = 3
ROUNDED = "label map or further channel displaced by no more than rounding of headers; taken as equal"
ALLOWED = "label map or further channel displaced from its image, as --allow-geometry-mismatch permits"


class CaseNotes:
    """note -> the cases it holds for, each with a displacement in mm where the note is about one.

    unit: what a case is called in the lines.
    """

    def __init__(self, unit: str = "case") -> None:
        self._unit = unit
        self._found: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()  # cases are read by several threads

    def add(self, note: str, case_id: str, displacement: float = 0.0) -> None:
        """Remember a note about a case; of several displacements the largest."""
        with self._lock:
            cases = self._found.setdefault(note, {})
            cases[case_id] = max(displacement, cases.get(case_id, 0.0))

    def of(self, case_id: str) -> tuple[tuple[str, float], ...]:
        """The notes about a case with their displacements."""
        with self._lock:
            return tuple(
                (note, cases[case_id]) for note, cases in sorted(self._found.items()) if case_id in cases
            )

    def lines(self) -> list[str]:
        """One line per note."""
        with self._lock:
            return [line_of(note, cases, self._unit) for note, cases in sorted(self._found.items())]


def line_of(note: str, cases: Mapping[str, float], unit: str = "case") -> str:
    """A note and {case: displacement} -> how many, the first of them, the note, the largest displacement."""
    names, largest = sorted(cases), max(cases.values())
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    far = f" (by at most {largest:.3g} mm)" if largest else ""
    return f"{len(cases)} {unit}{'s' if len(cases) > 1 else ''} ({shown}): {note}{far}"
