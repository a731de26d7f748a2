"""What does each arm cost in FVD, and how much faster is it?

    python analysis/ablation.py studies/demo [--output DIR]

Writes ablation.csv, ablation.md and ablation.tex; prints the table and a verdict for each claim.
"""

from pathlib import Path

from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections.ablation import build
from reco_tune.reporting.sections.claims import claims


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    section = build(evidence)
    save(section, output)
    told = [f"- {one.claim} ({one.budget}): {one.verdict}. {one.words}" for one in claims(evidence)]
    return "\n".join([markdown(section.tables), *told])


if __name__ == "__main__":
    run_script(work, __doc__)
