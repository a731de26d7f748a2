"""The remaining jobs of a study, in order: the calibrations, the runs that tune the arms, other unfinished runs of its
log, and proposals of the search.

Rebuilt from the log whenever a study is resumed. Knows the log, the search and the storage; knows nothing of Ray or of
the workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reco_tune.cost.planning import Plan
from reco_tune.quantities import VAL_CROSS_ENTROPY
from reco_tune.settings import BASELINE, SEARCH, TUNE, make_experiment
from reco_tune.study.dispatcher import Job
from reco_tune.study.scheduler import is_judged, measured_steps
from reco_tune.study.searcher import Search
from reco_tune.study.storage import Storage, holds_run, store_run
from reco_tune.study.study_writer import StudyWriter
from reco_tune.study_log import ENDED, RunRecord, StudyFolder, StudyRecord
from reco_tune.tuning import best_point, point_results, tuning_ended, tuning_runs

CALIBRATION = "calibration."
"""Prefix of an arm's name in the key of its calibration."""


@dataclass(frozen=True)
class JobInputs:
    """Where jobs find the prepared data."""

    tokens: str = ""
    """Path of the token cache."""
    storage: Storage | None = None
    """The storage that carries files, if machines do not share folders."""
    cached: tuple[str, ...] = ()
    """Names in the storage of the parts of the cache folder."""

    @property
    def address(self) -> str | None:
        return self.storage.address if self.storage else None


class JobSource:
    """The jobs of a study, one after another. Each is dispatched once, and written to the log if it is new."""

    def __init__(self, plan: Plan, folder: StudyFolder, writer: StudyWriter, search: Search) -> None:
        self.plan, self._folder, self._writer, self._search = plan, folder, writer, search
        self.inputs = JobInputs()
        self._unmeasurable = {
            run.arm: run.reason
            for run in self._study.runs.values()
            if run.state == "failed" and run.arm in self.plan.arms and run.arm not in self._study.calibrations
        }
        """Reasons why the speed of arms could not be measured. Their runs have failed for these reasons."""
        self._unmeasured = self._awaited
        """Arms whose calibration is not yet dispatched."""
        self._given: set[str] = set()
        """Keys of the jobs that were dispatched since the study was begun or resumed."""
        self._todo: list[str] | None = None
        """Runs in the log that are neither done nor dispatched; None before the plan is frozen."""

    @property
    def obstacles(self) -> list[str]:
        """Why nothing can continue: failed calibrations of the baseline, or of an arm whose steps need its speed."""
        counted = set(self.plan.space.budgets) - {"equal_steps"}
        return [reason for arm, reason in self._unmeasurable.items() if arm == BASELINE or counted]

    @property
    def untunable(self) -> list[str]:
        """Why settings could not be chosen for arms, whose runs then cannot be planned."""
        return [
            f"no tuning run of arm `{arm}` could be evaluated ({self._why(arm)}); `reco-tune retry` one of them, or"
            " begin a study with other ranges (tune.per_arm)"
            for arm in self.plan.untuned
            if tuning_ended(self._study.runs.values(), arm)
        ]

    @property
    def exhausted(self) -> bool:
        """Whether every job has been dispatched."""
        return self._todo is not None and self._search.exhausted and not self._tuning

    @property
    def left(self) -> int:
        """Largest number of runs that are not done: fixed arms, unfinished runs of the log, and remaining proposals."""
        runs = self._study.runs
        unplanned = sum(run.trial not in runs for run in self.plan.fixed)
        return unplanned + sum(record.state not in ENDED for record in runs.values()) + self._search.left

    def next(self) -> Job | None:
        """The next job. None if nothing is left, or if the next job depends on jobs that have not ended (`exhausted`
        tells).
        """
        return self._next_calibration() if self._todo is None else self._next_run()

    def unmeasurable(self, arm: str, reason: str) -> None:
        """Marks the calibration of an arm as failed. Its runs will fail, too."""
        self._unmeasurable[arm] = f"the speed of arm `{arm}` could not be measured: {reason}"

    def grow(self, plan: Plan) -> None:
        """Takes up additions to the study. New arms are calibrated before anything else begins."""
        self.plan, self._todo = plan, None
        self._unmeasured = [arm for arm in self._awaited if CALIBRATION + arm not in self._given]

    def again(self, trial: str) -> None:
        """Repeats a run that had ended, and the calibration of its arm if that had failed."""
        self._given.discard(trial)
        arm = self._study.runs[trial].arm
        if self._unmeasurable.pop(arm, ""):
            self._given.discard(CALIBRATION + arm)
            self.grow(self.plan)
        elif self._todo is not None:
            self._todo.append(trial)

    def withdraw(self, trial: str) -> bool:
        """Withdraws a run that is not done. True if it was not dispatched yet."""
        if self._todo is None or trial not in self._todo:
            return self._todo is None and trial not in self._given
        self._todo.remove(trial)
        return True

    def stored(self, trial: str) -> str:
        """Name of a run's folder in the storage."""
        return f"studies/{self._folder.identity}/{trial}"

    @property
    def _baseline(self) -> dict[str, Any]:
        return self.plan.baseline.model_dump(mode="json")

    @property
    def _study(self) -> StudyRecord:
        return self._writer.study

    @property
    def _awaited(self) -> list[str]:
        """Arms without a speed in the log whose calibration has not failed."""
        return [arm for arm in self.plan.arms if arm not in self._study.calibrations and arm not in self._unmeasurable]

    def _next_calibration(self) -> Job | None:
        """The calibration of an arm without a speed in the log. After the last one, the plan is frozen in the log, and
        runs begin.
        """
        if self._unmeasured:
            arm = self._unmeasured.pop(0)
            self._given.add(CALIBRATION + arm)
            experiment = self.plan.arms[arm]
            return Job(
                kind="calibration",
                key=CALIBRATION + arm,
                settings=experiment.model_dump(mode="json"),
                settings_hash=experiment.result_hash(),
                baseline=self._baseline,
                tokens=self.inputs.tokens,
                folder="",
                storage=self.inputs.address,
                cached=self.inputs.cached,
            )
        if self._awaited:
            return None
        self._freeze()
        return self._next_run()

    def _freeze(self) -> None:
        """Writes the runs of the fixed arms to the log; their steps follow from the measured speeds. For an arm that is
        to be tuned, writes only the runs that tune it.
        """
        known = self._study.calibrations
        self.plan = self.plan.at_speeds(
            {arm: speed["speedup"] for arm, speed in known.items() if arm in self.plan.arms}, self._study.tuned
        )
        for run in self.plan.fixed:
            if run.budget != TUNE and run.arm in self.plan.untuned:
                continue
            if run.trial not in self._study.runs:
                self._writer.write(
                    "planned",
                    trial=run.trial,
                    arm=run.arm,
                    budget=run.budget,
                    seed=run.seed,
                    settings=run.experiment.flat(),
                    settings_hash=run.experiment.result_hash(),
                    metrics=known.get(run.arm, {}),
                    **({"params": run.params} if run.params else {}),
                )
            if run.arm in self._unmeasurable and self._study.runs[run.trial].state not in ENDED:
                self._writer.write("failed", trial=run.trial, reason=self._unmeasurable[run.arm])
        unfinished = [record.trial for record in self._study.runs.values() if record.state not in ENDED]
        self._todo = [trial for trial in unfinished if trial not in self._given]

    @property
    def _tuning(self) -> list[str]:
        """Arms with tuning runs that have not ended."""
        return [arm for arm in self.plan.untuned if not tuning_ended(self._study.runs.values(), arm)]

    def _why(self, arm: str) -> str:
        """Reason why an arm's first tuning run gave no result."""
        run = tuning_runs(self._study.runs.values(), arm)[0]
        return run.reason or f"{run.trial} has no {self.plan.space.tune.metric}" if self.plan.space.tune else ""

    def _choose(self) -> None:
        """Writes the chosen settings of arms whose tuning runs have all ended, and then the runs of these arms."""
        tune, runs = self.plan.space.tune, self._study.runs.values()
        if tune is None:
            return
        ended = [arm for arm in self.plan.untuned if tuning_ended(runs, arm)]
        for arm in ended:
            if best := best_point(point_results(tune, runs, arm)):
                self._writer.write("tuned", arm=arm, settings=best.params, metric=tune.metric, value=best.mean)
        if set(ended) & self._study.tuned.keys():
            self._freeze()

    def _next_run(self) -> Job | None:
        """A run of the log that is not done, or a new one from the search."""
        self._choose()
        if self._todo:
            return self._job(self._study.runs[self._todo.pop(0)])
        if self._tuning:
            return None
        proposal = self._search.ask()
        if proposal is None:
            return None
        self._writer.write("asked", **proposal.event)
        return self._job(self._study.runs[proposal.trial])

    def _job(self, record: RunRecord) -> Job:
        self._given.add(record.trial)
        stored, folder, storage = self.stored(record.trial), self._folder.trial(record.trial), self.inputs.storage
        if (
            storage and folder.is_dir() and not holds_run(storage, stored)
        ):  # the run began when machines shared the folder
            store_run(storage, stored, folder)
        attempt = max(record.attempt, 1)
        if record.state != "planned":
            attempt = record.attempt + 1
            self._writer.write("retried", trial=record.trial, attempt=attempt, reason="the study was resumed")
        # Where it runs is as it is now, not as it was when the run was planned.
        settings = record.settings | self.plan.shared.where_settings()
        pruning, tune = self.plan.space.pruning, self.plan.space.tune if record.tunes else None
        return Job(
            kind="trial",
            key=record.trial,
            settings=make_experiment({}, settings, where=record.trial).model_dump(mode="json"),
            settings_hash=record.settings_hash,
            baseline=self._baseline,
            tokens=self.inputs.tokens,
            folder=str(folder.resolve()),
            attempt=attempt,
            sampled=record.arm == SEARCH and not record.repeats,
            calibration=self._study.calibrations.get(record.trial),
            judged=is_judged(pruning, record),
            evaluated=tune is None or tune.metric != VAL_CROSS_ENTROPY.name,
            generates_at=measured_steps(pruning, record),
            storage=self.inputs.address,
            cached=self.inputs.cached,
            stored=stored,
        )
