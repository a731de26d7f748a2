"""Which window length and stride give which FVD and speed-up?

python analysis/window_stride.py studies/window_stride [--output DIR]

Writes window_stride_BUDGET.csv for every budget, and .png and .pdf if the runs fill a map. Prints the means.
"""

from pathlib import Path

from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save_figure, write
from reco_tune.reporting.numbers import number
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.sections.window_stride import draw_window_stride, window_stride_cells, window_stride_table


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    lines, quality = [], evidence.quality
    for budget in evidence.budgets:
        table = window_stride_table(evidence, budget)
        write(output, f"window_stride_{budget}.csv", csv_text(table))
        save_figure(output / f"window_stride_{budget}", draw_window_stride, window_stride_cells(table), budget)
        lines.append(budget)
        for row in table.to_dict("records"):
            place = f"window {row['window.length_tokens']:5d}  stride {row['window.stride_tokens']:5d}"
            value = f"{quality.title} {number(row[quality.key], quality.digits):>7s}"
            lines.append(f"  {place}  {row['speedup']:5.2f}x  {value}  ({row['runs']} runs of {row['arm']})")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(work, __doc__)
