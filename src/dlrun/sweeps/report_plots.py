"""The pictures of a comparison: curves, rows with intervals, effects of settings. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from dlrun.sweeps.curves import Curve
from dlrun.sweeps.effects import Effect, Level
from dlrun.sweeps.leaderboard import Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which people with any kind of colour vision can tell apart."""
MARKERS, DASHES = "osD^vP*", ("-", "--", "-.", ":", "-", "--", "-.")
LINES = len(COLOURS)  # in one picture
ROWS = 25  # with intervals, in one picture
LETTERS = 60  # that stand side by side below an axis
FAR = 30  # times the smallest mean: then the axis is logarithmic
UNITS = {
    "accuracy": "share of samples",
    "top5": "share of samples",
    "loss": "mean per sample",
    "nll": "nats per sample",
}


def picture(draw: Callable[[Any], None], width: float = 7.0, height: float = 4.2) -> bytes:
    """A PNG of `draw(axis)`; sizes in inches at 110 dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.grid(alpha=0.25)
    draw(axis)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def with_unit(metric: str) -> str:
    """`val/accuracy (share of samples)`"""
    unit = UNITS.get(metric.partition("/")[2])
    return f"{metric} ({unit})" if unit else metric


def draw_curves(curves: Sequence[Curve], metric: str) -> bytes:
    """Mean of each row after every epoch, one standard deviation of its runs around it."""

    def draw(axis: Any) -> None:
        for curve, style in zip(curves, _styles(), strict=False):
            points = {"marker": style["marker"], "markersize": 4} if len(curve.epochs) < 3 else {}
            line = {"color": style["color"], "linestyle": style["linestyle"], **points}
            axis.plot(curve.epochs, curve.mean, label=f"{_short(curve.label)} (n = {curve.n})", **line)
            if curve.n > 1:
                axis.fill_between(curve.epochs, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set_yscale(_scale([value for curve in curves for value in curve.mean]))
        axis.set_xlabel("epoch")
        axis.set_ylabel(with_unit(metric))
        axis.xaxis.get_major_locator().set_params(integer=True)
        _legend(axis)

    return picture(draw)


def draw_rows(rows: Sequence[Row], metric: str, confidence: float) -> bytes:
    """Every run as a dot, every row with its mean and the interval of it."""
    kept = [row for row in rows if row.mean is not None][:ROWS]

    def draw(axis: Any) -> None:
        for height, row in enumerate(reversed(kept)):
            axis.plot(row.values, [height] * len(row.values), "o", color="grey", markersize=3, alpha=0.6)
            _interval(axis, row.mean, height, row.sample.interval(confidence), COLOURS[0])
        axis.set_yticks(
            range(len(kept)), [f"{_short(row.label)} (n = {row.size})" for row in reversed(kept)], fontsize=8
        )
        axis.set_ylim(-0.7, len(kept) - 0.3)
        axis.set_xscale(_scale([row.mean for row in kept]))
        axis.set_xlabel(with_unit(metric))

    return picture(draw, height=1.4 + 0.3 * len(kept))


def draw_effect(effect: Effect, metric: str, confidence: float) -> bytes:
    """A setting with its values on the axis: a line for each choice of the other settings, or the mean over many."""
    several = 1 < len(effect.lines) <= LINES
    lines = effect.lines if several else {"": effect.levels}

    def draw(axis: Any) -> None:
        if not effect.levels:
            axis.plot(*zip(*effect.points, strict=True), "o", color=COLOURS[0], alpha=0.7)
        for number, ((label, levels), style) in enumerate(zip(lines.items(), _styles(), strict=False)):
            where = _positions(effect, levels, 0.08 * (number - (len(lines) - 1) / 2))
            style = style if effect.numeric else {**style, "linestyle": "none"}
            means = [level.sample.mean for level in levels]
            axis.plot(where, means, label=_short(label) or None, markersize=5, **style)
            for x, level in zip(where, levels, strict=True):
                if interval := level.sample.interval(confidence):
                    axis.plot([x, x], interval, color=style["color"], alpha=0.5, linewidth=2)
        if effect.levels and not effect.numeric:
            names = [_short(level.value, 24) for level in effect.levels]
            slant = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > LETTERS else {}
            axis.set_xticks(range(len(names)), names, **slant)
        elif effect.scale != "linear":
            above = [x for x, _ in effect.points if x > 0]
            axis.set_xscale(effect.scale, **({"linthresh": min(above)} if effect.scale == "symlog" else {}))
        drawn = [level.sample.mean for levels in lines.values() for level in levels]
        axis.set_yscale(_scale(drawn or [y for _, y in effect.points]))
        axis.set_xlabel(effect.setting)
        axis.set_ylabel(with_unit(metric))
        if several:
            _legend(axis)

    return picture(draw)


def _positions(effect: Effect, levels: Sequence[Level], beside: float) -> list[float]:
    """Where values stand on the axis; choices of text in their order, lines `beside` each other."""
    if effect.numeric:
        return [level.position for level in levels if level.position is not None]
    names = [level.value for level in effect.levels]
    return [names.index(level.value) + beside for level in levels]


def _interval(axis: Any, mean: float | None, height: float, interval: tuple[float, float] | None, colour: str) -> None:
    assert mean is not None
    spread = [[mean - interval[0]], [interval[1] - mean]] if interval and all(map(math.isfinite, interval)) else None
    axis.errorbar([mean], [height], xerr=spread, fmt="D", color=colour, markersize=5, capsize=3)


def _styles() -> list[dict[str, str]]:
    """Colour, marker and dashes together, so that lines differ in print too."""
    return [
        {"color": colour, "marker": marker, "linestyle": dash}
        for colour, marker, dash in zip(COLOURS, MARKERS, DASHES, strict=True)
    ]


def _legend(axis: Any) -> None:
    axis.figure.legend(loc="outside upper center", fontsize=8, ncols=2, frameon=False)


def _scale(values: Sequence[float | None]) -> str:
    """Of an axis with values of the metric: logarithmic where they are positive and far apart."""
    known = [value for value in values if value is not None]
    return "log" if known and min(known) > 0 and max(known) > FAR * min(known) else "linear"


def _short(text: str, most: int = 48) -> str:
    """A label with an end, in which matplotlib sees no formula."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text.replace("$", r"\$")
