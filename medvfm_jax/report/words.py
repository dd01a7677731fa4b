"""How numbers and names are written in the report; everything that leaves here is safe inside HTML."""

import html
import math
from collections.abc import Mapping
from typing import Any

# name -> (written as, larger is better, digits after the point)
_METRICS: dict[str, tuple[str, bool, int]] = {
    "dice": ("Dice", True, 3),
    "iou": ("IoU", True, 3),
    "hd": ("HD", False, 2),
    "hd95": ("HD95", False, 2),
    "assd": ("ASSD", False, 2),
    "nsd": ("NSD", True, 3),
    "aji": ("AJI", True, 3),
    "pq": ("PQ", True, 3),
    "sq": ("SQ", True, 3),
    "dq": ("DQ", True, 3),
    "f1_50": ("F1 at IoU 0.50", True, 3),
    "f1_75": ("F1 at IoU 0.75", True, 3),
    "ece": ("ECE", False, 3),
    "brier": ("Brier", False, 3),
}
DISTANCES = ("hd", "hd95", "assd")
NOTHING = "–"


def text(value: object) -> str:
    """Any value as text that is safe between tags and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def metric_name(metric: str, unit: str | None = None) -> str:
    """The metric as a reader knows it, with the unit of distances, escaped."""
    name = _METRICS.get(metric, (metric, True, 3))[0]
    return text(f"{name} ({unit})" if unit and metric in DISTANCES else name)


def larger_is_better(metric: str) -> bool:
    """Whether a higher value of the metric is a better one."""
    return _METRICS.get(metric, (metric, True, 3))[1]


def is_number(value: object) -> bool:
    """Whether the value is a finite number (not a boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(value: Any, metric: str = "dice", *, signed: bool = False) -> str:
    """A score with the digits its metric deserves, or a dash."""
    if not is_number(value):
        return NOTHING
    digits = _METRICS.get(metric, (metric, True, 3))[2]
    rounded = round(float(value), digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"


def interval(row: Mapping[str, Any], metric: str, *, signed: bool = False) -> str:
    """ "low to high", or a dash when there is no interval (fewer than two patients)."""
    if not (is_number(row.get("low")) and is_number(row.get("high"))):
        return NOTHING
    return f"{score(row['low'], metric, signed=signed)} to {score(row['high'], metric, signed=signed)}"


def counted(number: Any, singular: str, plural: str | None = None) -> str:
    """ "1 case", "3 cases"; the plural is the singular with an s unless given."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


def count(value: Any) -> str:
    """A whole number with thousands apart, or a dash."""
    return f"{round(value):,}" if is_number(value) else NOTHING


def size(value: Any) -> str:
    """Bytes in the unit a reader can hold in mind."""
    if not is_number(value):
        return NOTHING
    amount = float(value)
    for unit in ("bytes", "kB", "MB"):
        if amount < (1000 if unit == "bytes" else 999.95):  # what would round to 1000.0 is the next unit
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def share(part: Any, whole: Any) -> str:
    """Part of whole in per cent, neither zero nor 100 unless it is exactly that."""
    if not (is_number(part) and is_number(whole) and whole):
        return NOTHING
    percent = 100 * part / whole
    if 0 < percent < 0.001:
        return "below 0.001 %"
    if 99.5 <= percent < 100:
        return "over 99 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def p_value(value: Any) -> str:
    """A p-value; below 0.001 only the bound."""
    if not is_number(value):
        return NOTHING
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
