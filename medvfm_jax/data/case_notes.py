"""What a user should know about how cases were read: collected while reading, counted, said once."""

import threading

ROUNDED = "label map or further channel displaced by no more than rounding of headers; taken as equal"
ALLOWED = "label map or further channel displaced from its image, as --allow-geometry-mismatch permits"
_NAMED = 3


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

    def lines(self) -> list[str]:
        """One line per note, with how many cases, the first of them, and the largest displacement."""
        with self._lock:
            return [_line(self._unit, note, cases) for note, cases in sorted(self._found.items())]


def _line(unit: str, note: str, cases: dict[str, float]) -> str:
    names = sorted(cases)
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    largest = max(cases.values())
    far = f" (by at most {largest:.3g} mm)" if largest else ""
    return f"{len(names)} {unit}{'s' if len(names) > 1 else ''} ({shown}): {note}{far}"
