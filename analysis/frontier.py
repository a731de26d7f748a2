"""Which runs does no other run beat in both speed-up and FVD?

    python analysis/frontier.py studies/demo [--output DIR]

Writes frontier.csv, frontier.png and frontier.pdf; prints the non-dominated runs of each budget.
"""

from pathlib import Path

from reco_tune.reporting import figures, frontier, load_runs
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import csv_text


def work(sources: list[str], output: Path) -> str:
    runs = load_runs(sources[0])
    found = frontier(runs)
    write(output, "frontier.csv", csv_text(found.points))
    if figure := figures.draw_frontier(found, runs):
        figures.save(figure, output / "frontier")
    lines = []
    for budget, volume in found.hypervolume.items():
        lines.append(f"{budget}: hypervolume {volume:.3f} over {len(found.at(budget))} runs")
        for row in found.non_dominated(budget).to_dict("records"):
            lines.append(f"  {row['speedup']:5.2f}x  FVD {row['fvd']:7.2f}  {row['trial']}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(work, __doc__)
