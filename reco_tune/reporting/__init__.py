"""What a study found: run records in, tables, verdicts, figures and a page out. Never touches models or Ray."""

from reco_tune.reporting.ablation import ablation_table
from reco_tune.reporting.frontier import Frontier, frontier
from reco_tune.reporting.report import Report, write_report
from reco_tune.reporting.runs import load_runs, load_study
from reco_tune.reporting.verdicts import Verdict, verdicts

__all__ = [
    "Frontier",
    "Report",
    "Verdict",
    "ablation_table",
    "frontier",
    "load_runs",
    "load_study",
    "verdicts",
    "write_report",
]
