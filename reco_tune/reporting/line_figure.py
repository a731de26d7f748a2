"""A figure of named lines in several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reco_tune.reporting.labels import label_line_ends
from reco_tune.reporting.style import LARGEST, colours, lay_out, new_panels, plain_log, say_left_out, style

LOSS_LABEL = "validation cross-entropy\n(nats/token, lower is better)"


def line_figure(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    panels: Mapping[str, Sequence[str]],
    log: bool = False,
) -> Figure | None:
    """Lines of (x, y) by name, each labelled at its end; None if there are no lines.

    Args:
        lines: by name. The part before a slash names the panel and is not shown in the label.
        panels: title -> names.
        log: whether y is on a log scale.
    """
    whole = lines
    lines = {name: [(x, y) for x, y in points if abs(y) <= LARGEST] for name, points in whole.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    panels = {title: [name for name in names if name in lines] for title, names in panels.items()}
    palette = colours([name.split("/")[-1] for name in lines])
    with style():
        figure, grid = new_panels(len(panels), 5.2, 4.2, 1.0, y_label)
        for axes, (title, names) in zip(grid, panels.items(), strict=True):
            for name in names:
                x, y = zip(*lines[name], strict=True)
                axes.plot(x, y, color=palette[name.split("/")[-1]], marker="o", markersize=3.5)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            grid[0].set_yscale("log")
        plain_log(grid[0], log)
        lay_out(figure)
        for axes, names in zip(grid, panels.values(), strict=True):
            ends = [(*lines[name][-1], name.split("/")[-1], palette[name.split("/")[-1]]) for name in names]
            label_line_ends(axes, ends)
        say_left_out(figure, sum(map(len, whole.values())) - sum(map(len, lines.values())))
    return figure
