"""A section as a picture: a panel for each group, a dot with its 90 % interval for each contestant."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

COLUMNS = 3
OWN, OTHERS, FLOOR = "#d1495b", "#30638e", "#edae49"


def plot(section: dict[str, Any], path: Path) -> None:
    """Writes the PNG; of each row the first measure, or those with a floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in section["rows"]:
        for label, measure in shown(row):
            groups.setdefault(f"{row['group']}: {measure['kind']}", []).append((label, measure))
    if not groups:
        return
    columns = min(COLUMNS, len(groups))
    lines = -(-len(groups) // columns)
    tallest = max(len(rows) for rows in groups.values())
    size = (5.2 * columns, lines * (1.2 + 0.3 * tallest))
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (group, rows) in zip(axes.flat, groups.items(), strict=False):
        draw(axis, group, rows)
    figure.suptitle(f"{section['title']} (1 or 0: {section['base']}); {section['machine']['processor']}", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def shown(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(label, measure) of what is drawn of a row."""
    measures = row["measures"]
    chosen = [name for name in measures if measures[name]["floor"] is not None] or list(measures)[:1]
    return [(row["name"] if len(chosen) == 1 else f"{row['name']}, {name}", measures[name]) for name in chosen]


def draw(axis: Any, group: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """A panel."""
    for height, (label, measure) in enumerate(reversed(rows)):
        colour = OWN if label.startswith("dlrun") else OTHERS
        middle = measure["median"]
        spread = [[middle - measure["low"]], [measure["high"] - middle]]
        axis.errorbar([middle], [height], xerr=spread, fmt="o", color=colour, capsize=3, markersize=5)
        if measure["floor"] is not None:
            axis.plot([measure["floor"]] * 2, [height - 0.35, height + 0.35], color=FLOOR, linewidth=2.5)
    axis.axvline(1.0 if rows[0][1]["kind"] == "ratio" else 0.0, color="grey", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)], fontsize=8)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(textwrap.fill(group, 48), fontsize=9)
    axis.margins(x=0.15)
