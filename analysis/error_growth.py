"""Does a perturbed first block disturb later blocks more and more?

    python analysis/error_growth.py studies/demo [--output DIR]

Writes error_growth.csv and a figure for every budget; prints the divergence of h in block 1 and in the last block (0
was perturbed), the rate of its growth (log factor per block, with its interval over seeds) and the law that it grows
by, where one is told from the other.
"""

from pathlib import Path

from reco_tune import quantities
from reco_tune.reporting import figures, load_study
from reco_tune.reporting.analyses import curve_table
from reco_tune.reporting.curves import arm_curves
from reco_tune.reporting.measures import blocks, measures_table
from reco_tune.reporting.runs import runs_table
from reco_tune.reporting.script import run_script, write
from reco_tune.reporting.tables import csv_text, measure_cell

GROWTH = quantities.ERROR_GROWTH


def work(sources: list[str], output: Path) -> str:
    study = load_study(sources[0])
    table = curve_table(study, [GROWTH])
    write(output, "error_growth.csv", csv_text(table))
    laws = blocks(measures_table(runs_table(study)), (quantities.ERROR_GROWTH_RATE, quantities.ERROR_GROWTH_AIC))
    told = {
        (block.budget, arm): f"; rate {measure_cell(rate)}, law {block.laws[arm]}"
        for block in laws
        for arm, (rate,) in block.rows.items()
        if rate
    }
    lines = []
    for budget in dict.fromkeys(table["budget"]):
        if figure := figures.draw_error_growth(arm_curves(study, budget), budget):
            figures.save(figure, output / f"error_growth_{budget}")
        for arm, rows in table[table["budget"] == budget].groupby("arm", sort=False):
            values = rows[GROWTH].to_numpy()
            found = "too few blocks after block 0 to grow over"
            if len(values) > 2:
                found = (
                    f"{values[1]:.4f} -> {values[-1]:.4f}  ({values[-1] / values[1]:.2f}x from block 1 to"
                    f" {len(values) - 1})"
                )
                found += told.get((str(budget), str(arm)), "")
            lines.append(f"{budget}  {arm:20s}  {found}")
    return "\n".join(lines) or "no run has this curve (evaluation.analyses is off)"


if __name__ == "__main__":
    run_script(work, __doc__)
