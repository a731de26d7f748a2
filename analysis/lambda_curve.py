"""How do FVD and cross-entropy change with the continuity weight λ?

python analysis/lambda_curve.py studies/lambda [--output DIR]

Writes lambda.csv, .md, .tex, .png and .pdf. Prints the lowest mean FVD of each budget, with the number of its runs,
their arm, and λ with its reduction over the width.
"""

from pathlib import Path

from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save
from reco_tune.reporting.sections.continuity_weight import build, lambda_groups, lambda_table, lowest_by_weight


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    save(build(evidence), output)
    return "\n".join(lowest_by_weight(lambda_groups(lambda_table(evidence)))) or "no windowed run has been evaluated"


if __name__ == "__main__":
    run_script(work, __doc__)
