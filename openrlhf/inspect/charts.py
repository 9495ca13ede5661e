"""Curves as inline SVG: one or two runs over the steps, on the band where the metric is healthy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from openrlhf.training.bands import Band, Range

WIDTH, HEIGHT = 300, 130
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 18
MOST = 400  # points of a curve; longer ones are thinned evenly
DOTS = 60  # up to so many points are dots that show their value
Curve = Sequence[tuple[float, float]]  # (step, value), finite


@dataclass(frozen=True)
class Scale:
    """Steps and values → places in the picture."""

    x: Range
    y: tuple[float, float]

    def at(self, step: float, value: float) -> tuple[float, float]:
        first, last = self.x[0] or 0.0, self.x[1] or 0.0
        across = (step - first) / ((last - first) or 1.0)
        up = (value - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def curve(lines: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """The finite values of a metric with their steps."""
    points = [(line["step"], line[name]) for line in lines if name in line and math.isfinite(line[name])]
    stride = math.ceil(len(points) / MOST) or 1
    return points if stride == 1 else [*points[:-1:stride], points[-1]]


def chart(curves: Sequence[Curve], band: Band | None = None) -> Markup:
    """The picture of the curves of one metric, one a run; those without points are left out."""
    every = [point for points in curves for point in points]
    if not every:
        return Markup('<svg class="chart"></svg>')
    steps = [step for step, _ in every]
    scale = Scale((min(steps), max(steps)), _value_range([value for _, value in every]))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        *(_band(band, scale) if band else ()),
        *_axes(scale),
        *(part for number, points in enumerate(curves) for part in _line(points, scale, number)),
        "</svg>",
    ]
    return Markup("".join(parts))  # numbers and names of ours alone


def number(value: float) -> str:
    """Short, as on an axis."""
    if 1000 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _axes(scale: Scale) -> list[str]:
    low, high = scale.y
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in (low, (low + high) / 2, high):
        _, y = scale.at(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{number(value)}</text>')
    first, last = scale.x
    parts.append(f'<text x="{LEFT}" y="{bottom + 13}">{number(first or 0)}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 13}" text-anchor="end">{number(last or 0)}</text>')
    return parts


def _band(band: Band, scale: Scale) -> list[str]:
    """The healthy stretch of the values in the picture, and the stretches of the red flag."""
    low, high = scale.y
    parts = [_stretch("healthy", *band.healthy, scale)]
    bottom, top = band.red
    if bottom is not None:
        parts.append(_stretch("red", low, bottom, scale))
    if top is not None:
        parts.append(_stretch("red", top, high, scale))
    return parts


def _stretch(kind: str, start: float | None, end: float | None, scale: Scale) -> str:
    low, high = scale.y
    start = low if start is None else min(max(start, low), high)
    end = high if end is None else min(max(end, low), high)
    if end <= start:
        return ""
    (_, top), (_, bottom) = scale.at(0, end), scale.at(0, start)
    width = WIDTH - LEFT - RIGHT
    return f'<rect class="{kind}" x="{LEFT}" y="{top:.1f}" width="{width}" height="{bottom - top:.1f}"/>'


def _line(points: Curve, scale: Scale, run: int) -> list[str]:
    if not points:
        return []
    places = [(*scale.at(step, value), step, value) for step, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    parts = [f'<polyline class="run{run}" points="{path}"/>']
    if len(points) <= DOTS:
        parts += [
            f'<circle class="run{run}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
            f"<title>{escape(f'step {step:g}: {value:.5g}')}</title></circle>"
            for x, y, step, value in places
        ]
    return parts
