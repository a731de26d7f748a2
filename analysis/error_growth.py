"""Does a perturbed first block disturb later blocks more and more?

python analysis/error_growth.py studies/demo [--output DIR]

Writes error_growth.csv and a figure for every budget. Prints the divergence of h in block 1 and in the last block
(block 0 was perturbed). Prints its rate of growth (log factor per block, with its interval over seeds), and the law of
growth if the data can tell one law from the other.
"""

from pathlib import Path

from reco_tune import quantities
from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save_figure, write
from reco_tune.reporting.curves import arm_curves
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.sections.curves import curve_table, draw_error_growth
from reco_tune.reporting.sections.measures import growth_law, measure_cell, measures_table

GROWTH = quantities.ERROR_GROWTH


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    table = curve_table(evidence.study, [GROWTH])
    write(output, "error_growth.csv", csv_text(table))
    rows = measures_table(evidence.results).to_dict("records")
    measured = {(row["measure"], row["budget"], row["arm"]): row for row in rows}
    told = {}
    for (measure, *place), rate in measured.items():
        if measure == quantities.ERROR_GROWTH_RATE.name:
            aic = measured[quantities.ERROR_GROWTH_AIC.name, *place]
            law = growth_law(aic["value"], aic["low"], aic["high"])
            told[tuple(place)] = f"; rate {measure_cell(rate)}, law {law}"
    lines = []
    for budget in dict.fromkeys(table["budget"]):
        save_figure(output / f"error_growth_{budget}", draw_error_growth, arm_curves(evidence.study, budget), budget)
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
