"""Which window length and stride give which FVD and speed-up?

    python analysis/window_stride.py studies/window_stride [--output DIR]

Writes window_stride_BUDGET.csv for every budget, .png and .pdf where runs make a map; prints the means.
"""

from pathlib import Path

from reco_tune.reporting import figures, load_runs
from reco_tune.reporting.analyses import window_stride_cells, window_stride_table
from reco_tune.reporting.runs import budget_order
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import csv_text


def work(sources: list[str], output: Path) -> str:
    runs = load_runs(sources[0])
    lines = []
    for budget in budget_order(runs):
        table = window_stride_table(runs, budget)
        write(output, f"window_stride_{budget}.csv", csv_text(table))
        if figure := figures.draw_window_stride(window_stride_cells(table), budget):
            figures.save(figure, output / f"window_stride_{budget}")
        lines.append(budget)
        for row in table.to_dict("records"):
            place = f"window {row['window.length_tokens']:5d}  stride {row['window.stride_tokens']:5d}"
            lines.append(
                f"  {place}  {row['speedup']:5.2f}x  FVD {row['fvd']:7.2f}  ({row['runs']} runs of {row['arm']})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(work, __doc__)
