"""Plots as SVG inside a page: no script, no other file, colours by the page's style sheet.

Each function returns one `<figure>`. Series are told apart by colour and by the shape of their
points, so that a print in black and white can be read too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from optmigd.units import format_ms

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 16, 48

Write = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A median with its spread."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    """One bar, of named parts from the bottom up."""

    name: str
    parts: Sequence[tuple[str, float]]


class _Axis:
    """Maps values to a coordinate, linearly or by logarithm, with ticks at round values."""

    def __init__(self, low: float, high: float, begin: float, end: float, *, log: bool) -> None:
        self.log = log
        if log:
            low = 10.0 ** math.floor(math.log10(max(low, 1e-3)))
            high = 10.0 ** math.ceil(math.log10(max(high, low * 10)))
        elif high <= low:
            high = low + 1
        self._low, self._high = low, high
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        if self.log:
            low, high = math.log10(self._low), math.log10(self._high)
            share = (math.log10(max(value, self._low)) - low) / (high - low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        if self.log:
            low, high = round(math.log10(self._low)), round(math.log10(self._high))
            return [10.0**power for power in range(low, high + 1)]
        step = _round_step((self._high - self._low) / 5)
        first = math.ceil(self._low / step)
        count = math.floor(self._high / step) - first + 1
        return [(first + index) * step for index in range(count)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    *,
    log_y: bool = False,
    write_x: Write = lambda value: f"{value:g}",
    write_y: Write = lambda value: f"{value:g}",
) -> str:
    """Medians joined by lines, with the spread as a bar through each."""
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    x = _Axis(0, max(p.x for p in points) or 1, LEFT, WIDTH - RIGHT, log=False)
    lowest = min(p.low for p in points) if log_y else 0
    y = _Axis(lowest, max(p.high for p in points), HEIGHT - BOTTOM, TOP, log=log_y)
    xs = sorted({p.x for p in points})
    body = _grid(y, write_y) + "".join(_x_label(x.at(value), write_x(value)) for value in xs)
    for number, one in enumerate(series):
        path = " ".join(f"{x.at(p.x):.1f},{y.at(p.y):.1f}" for p in one.points)
        body += f'<polyline class="line s{number}" points="{path}"/>'
        for p in one.points:
            at = x.at(p.x)
            body += (
                f'<line class="spread s{number}" x1="{at:.1f}" x2="{at:.1f}" '
                f'y1="{y.at(p.low):.1f}" y2="{y.at(p.high):.1f}"/>'
            )
            label = (
                f"{one.name}, {write_x(p.x)}: {write_y(p.y)} ({write_y(p.low)} to "
                f"{write_y(p.high)})"
            )
            body += _mark(number, at, y.at(p.y), label)
    return _figure(title, x_name, y_name, body, [one.name for one in series])


def stacked(title: str, y_name: str, bars: Sequence[Bar], *, write_y: Write = format_ms) -> str:
    """One bar beside the other, each made of named parts."""
    if not bars:
        return ""
    names = list(dict.fromkeys(name for bar in bars for name, _ in bar.parts))
    highest = max(sum(value for _, value in bar.parts) for bar in bars)
    y = _Axis(0, highest, HEIGHT - BOTTOM, TOP, log=False)
    room = (WIDTH - LEFT - RIGHT) / len(bars)
    body = _grid(y, write_y)
    for index, bar in enumerate(bars):
        left, width, base = LEFT + (index + 0.2) * room, 0.6 * room, 0.0
        for name, value in bar.parts:
            top = y.at(base + value)
            body += (
                f'<rect class="fill s{names.index(name)}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{y.at(base) - top:.2f}">'
                f"<title>{escape(bar.name)}, {escape(name)}: {write_y(value)}</title></rect>"
            )
            base += value
        body += _x_label(left + width / 2, bar.name)
    return _figure(title, "", y_name, body, names)


def timeline(
    title: str,
    x_name: str,
    y_name: str,
    points: Sequence[tuple[float, float]],
    spans: Sequence[tuple[float, float, str]],
    span_names: Sequence[str],
) -> str:
    """A value over time, with the spans of time in which something went on behind it."""
    if not points:
        return ""
    x = _Axis(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT, log=False)
    y = _Axis(0, 1.05 * max(value for _, value in points), HEIGHT - BOTTOM, TOP, log=False)
    body = ""
    for begin, end, name in spans:
        number = span_names.index(name)
        width = max(1.0, x.at(end) - x.at(begin))
        body += (
            f'<rect class="span s{number}" x="{x.at(begin):.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(name)}: {begin:.1f} s to '
            f"{end:.1f} s</title></rect>"
        )
    body += _grid(y, lambda value: f"{value:g}")
    body += "".join(_x_label(x.at(value), f"{value:g}") for value in x.ticks())
    path = " ".join(f"{x.at(at):.1f},{y.at(value):.1f}" for at, value in points)
    body += f'<polyline class="line plain" points="{path}"/>'
    return _figure(title, x_name, y_name, body, list(span_names), shape="span")


def _grid(y: _Axis, write: Write) -> str:
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">'
            f"{escape(write(value))}</text>"
        )
    return "".join(parts)


def _x_label(at: float, text: str) -> str:
    return (
        f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
        f"{escape(text)}</text>"
    )


def _mark(number: int, x: float, y: float, label: str) -> str:
    size = 4
    shapes = (
        f'<circle class="fill s{number}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">',
        f'<rect class="fill s{number}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" '
        f'height="{2 * size}">',
        f'<path class="fill s{number}" d="M{x:.1f},{y - 5:.1f} l5,9 h-10 z">',
        f'<path class="fill s{number}" d="M{x:.1f},{y - 6:.1f} l5,6 l-5,6 l-5,-6 z">',
    )
    tags = ("circle", "rect", "path", "path")
    kind = number % len(shapes)
    return f"{shapes[kind]}<title>{escape(label)}</title></{tags[kind]}>"


def _figure(
    title: str, x_name: str, y_name: str, body: str, names: Sequence[str], *, shape: str = "fill"
) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    legend = "".join(
        f'<span class="key"><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect class="{shape} s{number}" width="12" height="12"/></svg>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<div class="legend">{legend}</div>'
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
        f'<text class="name" transform="translate(14,{(HEIGHT - BOTTOM + TOP) / 2:.0f}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_name)}</text>{body}</svg></figure>'
    )
