"""How do FVD and cross-entropy move with the continuity weight λ?

    python analysis/lambda_curve.py studies/lambda [--output DIR]

Writes lambda.csv, lambda.png and lambda.pdf; prints the lowest mean FVD of each budget: over how many runs of which
arm, and at which λ with its reduction over the width.
"""

from pathlib import Path

from reco_tune.reporting import figures, load_runs
from reco_tune.reporting.analyses import lambda_groups, lambda_table, lowest_by_weight
from reco_tune.reporting.runs import arm_order
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import csv_text


def work(sources: list[str], output: Path) -> str:
    runs = load_runs(sources[0])
    table = lambda_table(runs)
    write(output, "lambda.csv", csv_text(table))
    if figure := figures.draw_lambda(table, arm_order(runs)):
        figures.save(figure, output / "lambda")
    return "\n".join(lowest_by_weight(lambda_groups(table))) or "no windowed run has been evaluated"


if __name__ == "__main__":
    run_script(work, __doc__)
