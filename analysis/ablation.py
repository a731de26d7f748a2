"""What does each arm cost in FVD, and how much faster is it?

    python analysis/ablation.py studies/demo [--output DIR]

Writes ablation.csv, ablation.md and ablation.tex; prints the table and a verdict for each claim.
"""

from pathlib import Path

from reco_tune.reporting import load_runs, verdicts
from reco_tune.reporting.ablation import COLUMNS, ablation_rows, caption, left_out
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import ablation_latex, ablation_markdown, csv_text


def work(sources: list[str], output: Path) -> str:
    runs = load_runs(sources[0])
    table, words, missing = ablation_rows(runs), caption(runs), left_out(runs)
    write(output, "ablation.csv", csv_text(table[list(COLUMNS)]))
    write(output, "ablation.tex", ablation_latex(table, words, missing))
    markdown = ablation_markdown(table, words, missing)
    write(output, "ablation.md", markdown)
    claims = [f"- {verdict.claim} ({verdict.budget}): {verdict.outcome}. {verdict.words}" for verdict in verdicts(runs)]
    return "\n".join([markdown, *claims])


if __name__ == "__main__":
    run_script(work, __doc__)
