"""Which of the searched settings matter most for FVD, and which for the speed-up?

python analysis/importance.py studies/joint [--output DIR]

Writes importance.csv, importance.png and importance.pdf. Prints the settings for each objective, most important first.
"""

from pathlib import Path

from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save
from reco_tune.reporting.sections.importance import LEAST_RUNS, build


def work(sources: list[str], output: Path) -> str:
    section = build(Evidence.read(sources[0]))
    save(section, output)
    table = section.tables[0].data
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
