"""Which of the searched settings decides FVD, and which the speed-up?

    python analysis/importance.py studies/joint [--output DIR]

Writes importance.csv, importance.png and importance.pdf; prints the settings of each objective, the most important
first.
"""

from pathlib import Path

from reco_tune.reporting import effort_figures, load_study
from reco_tune.reporting.importance import LEAST_RUNS, importance_table
from reco_tune.reporting.runs import runs_table
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.style import save
from reco_tune.reporting.tables import csv_text


def work(sources: list[str], output: Path) -> str:
    study = load_study(sources[0])
    table = importance_table(study, runs_table(study))
    write(output, "importance.csv", csv_text(table))
    if figure := effort_figures.draw_importance(table):
        save(figure, output / "importance")
    lines = []
    for objective, rows in table.groupby("objective", sort=False):
        lines.append(f"{objective} ({rows['runs'].iloc[0]} sampled runs)")
        lines += [
            f"  {share:6.1%}  {setting}" for setting, share in zip(rows["setting"], rows["importance"], strict=True)
        ]
    return (
        "\n".join(lines) or f"fewer than {LEAST_RUNS} sampled runs can be compared: that says nothing about importance"
    )


if __name__ == "__main__":
    run_script(work, __doc__)
