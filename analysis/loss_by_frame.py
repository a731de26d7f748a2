"""Is the first frame harder on a model's own samples than on training clips?

    python analysis/loss_by_frame.py studies/demo [--output DIR]

Writes loss_by_frame.csv and a figure for every budget; prints each arm's gap (samples minus training clips) in block 0,
with its interval over seeds and whether it differs from the baseline's, and over the rest.
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

TRAIN, GENERATED = quantities.LOSS_BY_FRAME_TRAIN, quantities.LOSS_BY_FRAME_GENERATED


def work(sources: list[str], output: Path) -> str:
    study = load_study(sources[0])
    table = curve_table(study, [TRAIN, GENERATED])
    write(output, "loss_by_frame.csv", csv_text(table))
    gaps = blocks(measures_table(runs_table(study)), (quantities.FIRST_FRAME_GAP,))
    first = {(block.budget, arm): measure_cell(gap) for block in gaps for arm, (gap,) in block.rows.items()}
    lines = []
    for budget in dict.fromkeys(table["budget"]):
        if figure := figures.draw_loss_by_frame(arm_curves(study, budget), budget):
            figures.save(figure, output / f"loss_by_frame_{budget}")
        for arm, rows in table[table["budget"] == budget].groupby("arm", sort=False):
            gap = (rows[GENERATED] - rows[TRAIN]).to_numpy()
            block_0 = first.get((str(budget), str(arm)), f"{gap[0]:.3g}")
            others = f"   other blocks: {gap[1:].mean():.3g}" if len(gap) > 1 else ""
            lines.append(f"{budget}  {arm:20s}  block 0: {block_0}{others} nats/token")
    return "\n".join(lines) or "no run has these curves (evaluation.analyses is off)"


if __name__ == "__main__":
    run_script(work, __doc__)
