"""Is the first frame harder on a model's own samples than on training clips?

python analysis/loss_by_frame.py studies/demo [--output DIR]

Writes loss_by_frame.csv and a figure for every budget. Prints each arm's gap (samples minus training clips) in block 0
and over the other blocks. For block 0, it adds the interval over seeds and whether the gap differs from the baseline's.
"""

from pathlib import Path

from reco_tune import quantities
from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save_figure, write
from reco_tune.reporting.curves import arm_curves
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.sections.curves import curve_table, draw_loss_by_frame
from reco_tune.reporting.sections.measures import measure_cell, measures_table

TRAIN, GENERATED = quantities.LOSS_BY_FRAME_TRAIN, quantities.LOSS_BY_FRAME_GENERATED


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    table = curve_table(evidence.study, [TRAIN, GENERATED])
    write(output, "loss_by_frame.csv", csv_text(table))
    measured = measures_table(evidence.results)
    gaps = measured[measured["measure"] == quantities.FIRST_FRAME_GAP.name].to_dict("records")
    first = {(gap["budget"], gap["arm"]): measure_cell(gap) for gap in gaps}
    lines = []
    for budget in dict.fromkeys(table["budget"]):
        save_figure(output / f"loss_by_frame_{budget}", draw_loss_by_frame, arm_curves(evidence.study, budget), budget)
        for arm, rows in table[table["budget"] == budget].groupby("arm", sort=False):
            gap = (rows[GENERATED] - rows[TRAIN]).to_numpy()
            block_0 = first.get((str(budget), str(arm)), f"{gap[0]:.3g}")
            others = f"   other blocks: {gap[1:].mean():.3g}" if len(gap) > 1 else ""
            lines.append(f"{budget}  {arm:20s}  block 0: {block_0}{others} nats/token")
    return "\n".join(lines) or "no run has these curves (evaluation.analyses is off)"


if __name__ == "__main__":
    run_script(work, __doc__)
