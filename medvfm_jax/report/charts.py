"""Inline SVG: curves over steps, and means with their intervals. Colours follow the page's theme."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from medvfm_jax.report.style import CHART_CSS, LIGHT
from medvfm_jax.report.words import interval, score, text

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 40
_MOST_POINTS = 400


class Series(NamedTuple):
    """One curve: points (x, y) in order of x, and intervals (x, low, high)."""

    name: str
    points: Sequence[tuple[float, float]]
    smooth: bool = False  # draw the points faintly and their moving average on top
    dots: bool = False
    bars: Sequence[tuple[float, float, float]] = ()


class Interval(NamedTuple):
    """A mean, its interval (None: none) and the number of patients; `colour` 0 to 3."""

    name: str
    mean: float
    low: float | None
    high: float | None
    n: int
    colour: int = 0


def curves(title: str, series: Sequence[Series], x_name: str = "step", *, doubling: bool = False) -> str:
    """Line chart of one quantity over whole numbers; series without a finite point are left out.

    doubling: the numbers, above 0, lie on a logarithmic axis with a mark at each of them. "" when no series is left.
    """
    drawn = [s._replace(points=_finite(s.points)) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return ""
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    ys += [y for s in drawn for _, low, high in s.bars for y in (low, high)]
    x_ticks = sorted(set(xs)) if doubling else ticks(min(xs), max(xs), least=1.0)
    y_ticks = ticks(min(ys), max(ys))
    place = math.log if doubling else float
    x_low, x_high, (y_low, *_, y_high) = place(x_ticks[0]), place(x_ticks[-1]), y_ticks
    x_span = x_high - x_low or 1.0  # of a single size

    def px(x: float) -> float:
        return _LEFT + (place(x) - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_open(_WIDTH, _HEIGHT, title), f'<text class="title" x="0" y="14">{text(title)}</text>']
    for tick in y_ticks:
        y = f"{py(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{_tick(tick, y_ticks)}</text>')
    for tick in x_ticks:
        x, base = f"{px(tick):.1f}", _HEIGHT - _BOTTOM
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base}" y2="{base + 4}"/>')
        mark = f"{tick:g}" if doubling else _tick(tick, x_ticks)
        parts.append(f'<text x="{x}" y="{base + 18}" text-anchor="middle">{mark}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{text(x_name)}</text>')
    for index, one in enumerate(drawn):
        parts += _curve(one, index % 4, px, py)
    if len(drawn) > 1:
        parts += _legend([s.name for s in drawn])
    return "".join([*parts, "</svg>"])


def intervals(title: str, rows: Sequence[Interval], metric: str) -> str:
    """Means with 95 % intervals, one row each (a forest plot); "" without rows."""
    rows = [_row(row) for row in rows if math.isfinite(row.mean)]
    if not rows:
        return ""
    names = min(max(max(len(row.name) for row in rows) * 7 + 16, 90), 300)
    width, step, top = 960, 30, 34
    height, right = top + step * len(rows) + 30, 230
    ends = [v for row in rows for v in (row.mean, row.low, row.high) if v is not None]
    marks = ticks(min(ends), max(ends))

    def px(value: float) -> float:
        return names + (value - marks[0]) / (marks[-1] - marks[0]) * (width - names - right)

    base = top + step * len(rows)
    parts = [_open(width, height, title), f'<text class="title" x="0" y="14">{text(title)}</text>']
    for mark in marks:
        x = f"{px(mark):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top - 8}" y2="{base}"/>')
        parts.append(f'<text x="{x}" y="{base + 18}" text-anchor="middle">{_tick(mark, marks)}</text>')
    for index, row in enumerate(rows):
        y, colour = top + step * index + step / 2, row.colour % 4
        parts.append(f'<text x="0" y="{y}" dy="4">{text(_short(row.name))}</text>')
        if row.low is not None:
            parts.append(
                f'<line class="s{colour}" stroke-width="3" stroke-linecap="round" '
                f'x1="{px(row.low):.1f}" x2="{px(row.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="f{colour}" cx="{px(row.mean):.1f}" cy="{y}" r="5"/>')
        span = "no interval" if row.low is None else interval(row._asdict(), metric)
        number = f"{score(row.mean, metric)}  ({span})  n {row.n}"
        parts.append(
            f'<text class="value" x="{width}" y="{y}" dy="4" text-anchor="end">{text(number)}</text>'
        )
    return "".join([*parts, "</svg>"])


def standalone(svg: str) -> str:
    """A chart of this module as a file of its own, with the page's colours; "" stays ""."""
    if not svg:
        return ""
    style = f"<style>svg {{ {LIGHT} background: var(--panel); font-family: sans-serif; }} {CHART_CSS}</style>"
    head, body = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}\n'


def ticks(low: float, high: float, about: int = 5, least: float = 0.0) -> list[float]:
    """At least two round numbers, evenly and at least `least` apart, that enclose [low, high]."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and `reach` neighbours on either side, fewer near the ends but always as many left
    as right, so that a straight line stays what it is."""
    smooth = []
    for k in range(len(values)):
        r = min(reach, k, len(values) - 1 - k)
        smooth.append(sum(values[k - r : k + r + 1]) / (2 * r + 1))
    return smooth


def _curve(series: Series, colour: int, px, py) -> list[str]:
    points = _thinned(series.points)
    bars = [
        f'<line class="line s{colour}" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" y2="{py(high):.1f}"/>'
        for x, low, high in series.bars
    ]
    path = _path([(px(x), py(y)) for x, y in points])
    parts = bars
    if series.smooth and len(points) > 8:
        average = moving_average([y for _, y in points], max(2, len(points) // 30))
        parts.append(f'<path class="faint s{colour}" d="{path}"/>')
        path = _path([(px(x), py(y)) for (x, _), y in zip(points, average, strict=True)])
    if len(points) > 1:
        parts.append(f'<path class="line s{colour}" d="{path}"/>')
    if series.dots or len(points) == 1:
        parts += [
            f'<circle class="f{colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.2">'
            f"<title>{text(series.name)} {x:g}: {y:.4g}</title></circle>"
            for x, y in points
        ]
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], _WIDTH - _RIGHT
    for index, name in reversed(list(enumerate(names))):
        parts.append(f'<text x="{x}" y="14" text-anchor="end">{text(name)}</text>')
        x -= 7 * len(name) + 10
        parts.append(f'<line class="line s{index % 4}" x1="{x - 16}" x2="{x}" y1="10" y2="10"/>')
        x -= 30
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` points, each the mean of as many neighbours."""
    group = math.ceil(len(points) / _MOST_POINTS)
    chunks = [points[k : k + group] for k in range(0, len(points), group)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(title)}">'


def _tick(value: float, among: Sequence[float]) -> str:
    step = among[1] - among[0]
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1  # steps of 0.25
    return f"{value:.{digits}f}" if digits < 7 else f"{value:.2g}"


def _row(row: Interval) -> Interval:
    """Half an interval, or one without finite ends, is none."""
    known = row.low is not None and row.high is not None and math.isfinite(row.low + row.high)
    return row if known else row._replace(low=None, high=None)


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"
