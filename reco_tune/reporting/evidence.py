"""The basis of every result of a report: the study, its runs and their comparisons. Each is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from reco_tune.reporting.budgets import budget_order
from reco_tune.reporting.comparisons import (
    DETAILS,
    ArmResult,
    Comparison,
    Unresolved,
    ablation_rows,
    arm_results,
    comparisons,
    unresolved,
)
from reco_tune.reporting.curves import Turn, turns
from reco_tune.reporting.frontier import Frontier, find_frontier
from reco_tune.reporting.imported import with_imports
from reco_tune.reporting.paper import Reference, paper_reference
from reco_tune.reporting.protocols import under_protocol
from reco_tune.reporting.quality import Quality
from reco_tune.reporting.runs import (
    Source,
    arm_order,
    bounds,
    comparable,
    load_study,
    measured_with,
    own_runs,
    quality_of_runs,
    refuse_mixed,
    runs_table,
)
from reco_tune.settings import BASELINE
from reco_tune.study_log import StudyFolder, StudyRecord


@dataclass(frozen=True, eq=False)
class Evidence:
    """A study and its comparisons. Every property is computed when it is first used.

    Raises, from the first property that compares runs:
        ComparisonError: if runs have different protocols, runs of one arm differ in more than the seed, or no run is of
            the requested baseline.
    """

    runs: pd.DataFrame
    """The study's runs, then the imported ones."""
    study: StudyRecord = field(default_factory=StudyRecord)
    folder: StudyFolder | None = None
    """Folder of the study, if it has one."""
    imports: Sequence[Path] = ()
    """Files of the imported runs."""
    baseline: str = BASELINE

    @classmethod
    def read(cls, source: Source, imports: Sequence[Path] = (), protocol: str | None = None) -> Evidence:
        """The evidence of a study, with CSV files of imported runs (`imported`).

        Args:
            protocol: another protocol that its models were scored under (`under_protocol`).

        Raises:
            StudyError: if there is no study, or its log is damaged.
            TrackingError: if MLflow cannot be read.
            ComparisonError: if an imported file is invalid.
        """
        study = load_study(source)
        if protocol is not None:
            study = under_protocol(study, protocol)
        tracked = isinstance(source, StudyRecord) or str(source).startswith("mlflow:")
        folder = None if tracked else StudyFolder(Path(str(source)))
        return cls(with_imports(runs_table(study), imports), study, folder, tuple(imports))

    @cached_property
    def own(self) -> pd.DataFrame:
        """The runs of the study itself."""
        return own_runs(self.runs)

    @cached_property
    def comparable(self) -> pd.DataFrame:
        """The runs that may be in one table. Runs of one arm differ only in their seed."""
        kept = comparable(self.runs)
        refuse_mixed(kept)
        return kept

    @cached_property
    def quality(self) -> Quality:
        """The metric by which its runs are compared."""
        return quality_of_runs(self.runs)

    @cached_property
    def own_comparable(self) -> pd.DataFrame:
        return own_runs(self.comparable)

    @cached_property
    def budgets(self) -> list[str]:
        """Protocol of the study. Imported rows may have another one."""
        return budget_order(self.own)

    @cached_property
    def arms(self) -> list[str]:
        """Results in the order of the space file, imported ones last. Sampled runs are not arms."""
        return arm_order(self.runs)

    @cached_property
    def results(self) -> Mapping[tuple[str, str], ArmResult]:
        """By (budget, arm)."""
        return arm_results(self.comparable, budget_order(self.runs))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return comparisons(self.results, self.runs, self.baseline)

    @cached_property
    def unresolved(self) -> list[Unresolved]:
        """Arms that are not resolved against the baseline, with the number of seeds that would resolve each."""
        return unresolved(self.comparisons)

    @cached_property
    def own_comparisons(self) -> list[Comparison]:
        """Comparisons of the study's own arms at its own budgets."""
        return [one for one in self.comparisons if not one.imported and one.result.budget in self.budgets]

    @cached_property
    def ablation(self) -> pd.DataFrame:
        """`comparisons.ablation_rows`."""
        return ablation_rows(self.comparisons, self.quality)

    @cached_property
    def frontier(self) -> Frontier:
        return find_frontier(self.own_comparable, self.budgets, bounds(self.runs))

    @cached_property
    def turns(self) -> list[Turn]:
        """Arms that overfit."""
        return turns(self.study, self.budgets)

    @cached_property
    def paper(self) -> dict[str, Reference]:
        """The paper's own values by arm, where conditions match."""
        return paper_reference(self.own_comparable)

    @cached_property
    def origin(self) -> str:
        """Origin of the study's numbers, for the end of a caption."""
        return measured_with(self.own_comparable)


def frontier(runs: pd.DataFrame) -> Frontier:
    """The frontier of the runs of `load_runs`.

    Raises:
        ComparisonError: if the runs have different protocols.
    """
    return Evidence(runs).frontier


def ablation_table(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """The rows of ablation.csv (`comparisons.ablation_rows`), from the runs of `load_runs`.

    Raises:
        ComparisonError: if the runs have different protocols, or none is of the requested baseline.
    """
    evidence = Evidence(runs, baseline=baseline)
    return evidence.ablation.drop(columns=[*DETAILS])
