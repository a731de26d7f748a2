"""How do the same arms do in several studies?

python analysis/compare_studies.py studies/a studies/b [--output DIR]

Writes comparison.csv. Prints FVD and speed-up by budget and arm, with one line for each study. If the training seeds of
the studies differ, there is also a line for all studies together. Refuses studies of different protocols.
"""

from pathlib import Path

from reco_tune.reporting import load_runs
from reco_tune.reporting.analysis_cli import run_script, write
from reco_tune.reporting.numbers import interval, number
from reco_tune.reporting.quality import quality_of
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.studies import comparison_table, study_names


def work(sources: list[str], output: Path) -> str:
    table = comparison_table(
        {name: load_runs(source) for name, source in zip(study_names(sources), sources, strict=True)}
    )
    write(output, "comparison.csv", csv_text(table))
    lines, quality = [], quality_of(table)
    for (budget, arm), rows in table.groupby(["budget", "arm"], sort=False):
        lines.append(f"{budget}  {arm}")
        for row in rows.to_dict("records"):
            ends = interval(row[quality.low], row[quality.high], quality.digits)
            told = f"{quality.title} {number(row[quality.key], quality.digits)} {ends}"
            lines.append(f"  {row['study']:24s}  {told}  {number(row['speedup'])}x  ({row['seeds']} seeds)")
    return "\n".join(lines) or "no arm has been evaluated"


if __name__ == "__main__":
    run_script(work, __doc__, several=True)
