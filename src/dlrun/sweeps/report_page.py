"""A comparison as one HTML page that needs nothing else: tables, and pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from dlrun import rundir
from dlrun.sweeps.comparison import Comparison
from dlrun.sweeps.curves import Curve
from dlrun.sweeps.effects import Effect
from dlrun.sweeps.leaderboard import figure, half_width, plus_minus
from dlrun.sweeps.report_plots import LINES, ROWS, draw_curves, draw_effect, draw_rows
from dlrun.sweeps.report_table import UNBALANCED, level_cells, numbers_of

SHOWN = 200  # rows of the table; compare.csv holds all
STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-size:13px}td,th{padding:.2rem .6rem;text-align:right;"
    "border-bottom:1px solid #ccc}td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}"
    "figure{margin:1rem 0 2rem}img{max-width:100%}figcaption,.note{color:#555;font-size:13px}"
)


def write_page(
    comparison: Comparison,
    effects: Sequence[Effect],
    curves: Sequence[tuple[str, Curve]],
    notes: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Writes the page. Raises ConfigError if it cannot be written.

    Args:
        curves: each with its metric; those of one metric share a picture.
        notes: lines below the summary.
    """
    board = comparison.board
    parts = [f"<h1>{escape(title)}</h1><p><b>{escape(comparison.summary())}</b></p>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    parts += ["<h2>Rows</h2>", *_rows(comparison)]
    shown = [row for row in board.rows if row.mean is not None]
    if shown:
        parts.append(_figure(draw_rows(shown, board.monitor, board.confidence), _rows_caption(comparison, len(shown))))
    parts += _curves(curves)
    for effect in effects:
        parts += _effect(effect, comparison)
    style = f"<style>{STYLE}</style>"
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>{style}</head>'
    rundir.write_text(path, f"{head}<body>{''.join(parts)}</body></html>\n")


def _rows(comparison: Comparison) -> list[str]:
    board = comparison.board
    to = "baseline" if comparison.chosen else "best"
    interval = plus_minus(board.confidence)
    heading = ["row", "mean", "std", interval, "n", f"difference to the {to}", interval]
    heading += ["p", "p (Holm)", "effect", "pairs", "runs", "verdict"]
    lines = []
    for compared in comparison.rows[:SHOWN]:
        row = compared.row
        cells = [
            row.label,
            figure(row.mean),
            figure(row.std, 2),
            figure(half_width(row.sample.interval(board.confidence)), 2),
            row.size,
        ]
        lines.append([*cells, *numbers_of(compared), row.statuses, compared.verdict or f"({to})"])
    table = _table(heading, lines)
    left = len(comparison.rows) - SHOWN
    return [table, f"<p>{left} more rows in compare.csv</p>"] if left > 0 else [table]


def _rows_caption(comparison: Comparison, count: int) -> str:
    board = comparison.board
    first = f"The first {ROWS} of {count} rows. " if count > ROWS else ""
    return (
        f"{first}{board.monitor}: each run (grey), the mean of each row and its {100 * board.confidence:.4g} % interval by "
        f"Student's t; {len([job for job in board.jobs if job.finished])} runs, n of each row beside its name. Smaller is "
        "better."
    ).replace("Smaller", "Larger" if board.higher_is_better else "Smaller")


def _curves(curves: Sequence[tuple[str, Curve]]) -> Iterable[str]:
    for metric in dict.fromkeys(name for name, _ in curves):
        chosen = [curve for name, curve in curves if name == metric][:LINES]
        caption = f"{metric} after each epoch: mean of the runs of a row, and one standard deviation around it; "
        caption += "; ".join(f"{curve.label}: n = {curve.n}" for curve in chosen)
        yield f"<h2>{escape(metric)} by epoch</h2>"
        yield _figure(draw_curves(chosen, metric), caption)


def _effect(effect: Effect, comparison: Comparison) -> Iterable[str]:
    board = comparison.board
    yield f"<h2>Effect of {escape(effect.setting)}</h2>"
    scale = {"linear": "", "log": ", log axis", "symlog": ", log axis (linear at 0)"}[effect.scale]
    caption = f"{board.monitor} by {effect.setting}{scale}. "
    if not effect.levels:
        text = f"{caption}Each dot is a row; n = {len(effect.points)} rows."
        yield _figure(draw_effect(effect, board.monitor, board.confidence), text)
        return
    if len(board.names) > 1:
        over = "the other settings" if effect.balanced else UNBALANCED
        yield f'<p class="note">Mean over {escape(over)}; n counts seeds (or folds).</p>'
        yield _table(
            ["value", "mean", plus_minus(board.confidence), "n", "runs"], list(level_cells(effect, board.confidence))
        )
    several = 1 < len(effect.lines) <= LINES
    what = "A line for each choice of the other settings" if several else "Means"
    counts = sorted(
        {level.sample.n for levels in (effect.lines.values() if several else [effect.levels]) for level in levels}
    )
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"{caption}{what}, with the {100 * board.confidence:.4g} % interval as bars; n = {n} for each point."
    yield _figure(draw_effect(effect, board.monitor, board.confidence), text)


def _figure(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"
