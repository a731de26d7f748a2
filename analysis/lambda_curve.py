"""How do FVD and cross-entropy move with the continuity weight λ?

    python analysis/lambda_curve.py studies/lambda [--output DIR]

Writes lambda.csv, lambda.png and lambda.pdf; prints the best λ of each budget. Every λ is listed with its reduction over the width.
"""

from pathlib import Path

from reco_tune.reporting import figures, load_runs
from reco_tune.reporting.analyses import lambda_table
from reco_tune.reporting.runs import arm_order
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import csv_text


def work(sources: list[str], output: Path) -> str:
    runs = load_runs(sources[0])
    table = lambda_table(runs)
    write(output, "lambda.csv", csv_text(table))
    if figure := figures.draw_lambda(table, arm_order(runs)):
        figures.save(figure, output / "lambda")
    lines = []
    for budget, rows in table.groupby("budget", sort=False):
        best = rows.loc[rows["fvd"].idxmin()]
        weight, reduction = best["objective.continuity_weight"], best["objective.continuity_reduction"]
        fvd = f"{best['fvd']:.2f} [{best['fvd_low']:.2f}, {best['fvd_high']:.2f}]"
        lines.append(f"{budget}: lowest FVD {fvd} at λ = {weight:g} ({reduction}), {best['trial']}")
    return "\n".join(lines) or "no windowed run has been evaluated"


if __name__ == "__main__":
    run_script(work, __doc__)
