"""What a study found: run records in, tables, verdicts, figures and a page out. Never touches models or Ray."""

from reco_tune.reporting.evidence import Evidence, ablation_table, frontier
from reco_tune.reporting.frontier import Frontier
from reco_tune.reporting.report import Report, write_report
from reco_tune.reporting.runs import load_runs, load_study

__all__ = ["Evidence", "Frontier", "Report", "ablation_table", "frontier", "load_runs", "load_study", "write_report"]
