"""A study and its runs, read from its folder at each call."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reco_tune.errors import ReCoTuneError, SettingsError, StoppedError, StudyError
from reco_tune.study_log import RunRecord, StudyFolder, StudyRecord, named_run, read_study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from reco_tune.model import Decoder
    from reco_tune.reporting import Frontier
    from reco_tune.settings import Space
    from reco_tune.study import Growth, Observer, StudyResult


class Study:
    """A study in its folder, finished or not."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            StudyError: if the folder has no study.
        """
        self.folder = folder
        self._record()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._record().finished

    def runs(self) -> pd.DataFrame:
        """One row per run: every setting by key, every metric, cost, state and fingerprints."""
        from reco_tune.reporting import load_runs

        return load_runs(self.folder)

    def ablation(self, baseline: str = "full") -> pd.DataFrame:
        """The ablation table: one row per arm and budget, with intervals and the difference to the baseline.

        Raises:
            ComparisonError: if the runs are not comparable, or the baseline has no run.
        """
        from reco_tune.reporting import ablation_table, load_runs

        return ablation_table(load_runs(self.folder), baseline)

    def frontier(self) -> Frontier:
        """The configurations that no other beats in both speed and FVD; `points` is a table.

        Raises:
            ComparisonError: if the runs are not comparable.
        """
        from reco_tune.reporting import frontier, load_runs

        return frontier(load_runs(self.folder))

    def best(self, metric: str = "fvd") -> Run:
        """The evaluated run with the best value of a metric among those that break no constraint.

        Raises:
            StudyError: if no run has the metric.
        """
        from reco_tune.study.export import best_run

        return Run(self, best_run(self._record(), metric))

    def run(self, trial: str) -> Run:
        """A run by its name, as in `runs()`.

        Raises:
            StudyError: if there is no such run.
        """
        return Run(self, named_run(self._record(), trial))

    def report(self) -> Path:
        """Writes tables, figures and the page; returns the path of the page."""
        from reco_tune.reporting import write_report

        return write_report(self.folder, None).index

    def extend(
        self,
        *,
        arms: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
        seeds: Sequence[int] = (),
        trials: int = 0,
        budgets: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
        address: str | None = None,
        tracking_uri: str | None = None,
        progress: bool = True,
    ) -> None:
        """Adds to the study and continues it, finished or not. Nothing finished is repeated. If the study is running,
        it takes up the additions, and the call returns at once.

        Args:
            arms: names of known arms, or new arms as a mapping of name to settings, as in a YAML file.
            seeds: additional training seeds of the fixed arms.
            trials: number of additional sampled trials.
            budgets: additional budgets.
            changes: changed ranges (`search.KEY`), limits (`stop_after.KEY`) and resources (`resources.KEY`).
            address: address of a Ray cluster; by default the study starts its own on this machine.
            tracking_uri: MLflow server; by default a file in the folder.
            progress: whether to show progress.

        Raises:
            SettingsError, StudyError: if the study cannot be extended in this way.
            RunFailedError: if runs are unfinished.
            StoppedError: after Ctrl-C, or if a running study has not answered yet.
        """
        from reco_tune import study
        from reco_tune.settings import load_space
        from reco_tune.study import requests
        from reco_tune.study.growth import grown

        space = load_space(StudyFolder(self.folder).settings)
        growth = self._growth(space, arms, seeds, trials, budgets, changes or {})
        larger = grown(space, growth)  # invalid additions fail here, before the running study gets them
        if requests.answered(StudyFolder(self.folder), "extend", growth=growth.to_json()) is None:
            options = study.Options(address=address, tracking_uri=tracking_uri, command="study.extend(...)")
            drive(self.folder, larger.trials, progress, lambda told: study.extend(self.folder, growth, options, told))

    def resume(self, *, address: str | None = None, tracking_uri: str | None = None, progress: bool = True) -> None:
        """Continues a study that was paused or whose process died.

        Raises:
            StudyError: if it is running, or a setting that affects results has changed.
            RunFailedError: if runs are unfinished.
            StoppedError: after Ctrl-C.
        """
        from reco_tune import study
        from reco_tune.settings import load_space

        trials = load_space(StudyFolder(self.folder).settings).trials
        options = study.Options(address=address, tracking_uri=tracking_uri, command="study.resume()")
        drive(self.folder, trials, progress, lambda told: study.resume(self.folder, options, told))

    def stop(self, trial: str) -> None:
        """Stops one run. It writes a checkpoint, counts as pruned and appears in no table. `retry` continues it.

        Raises:
            StudyError: if there is no such run, or it has ended.
            StoppedError: if the process that runs the study has not answered yet.
        """
        from reco_tune.study.steering import stop_runs

        stop_runs(StudyFolder(self.folder), [trial])

    def retry(self, trial: str | None = None) -> None:
        """Tries a failed or stopped run again from its last checkpoint; without a name, every failed run. A running
        study does so at once, any other study when it is resumed.

        Raises:
            StudyError: if there is no such run, or it has neither failed nor been stopped.
            StoppedError: if the process that runs the study has not answered yet.
        """
        from reco_tune.study.steering import FAILED, retry_runs

        retry_runs(StudyFolder(self.folder), [trial or FAILED])

    def pause(self) -> None:
        """Pauses a running study: its runs write checkpoints and stop. `resume` continues it.

        Raises:
            StudyError: if the study is not running.
            StoppedError: if the process that runs the study has not answered yet.
        """
        from reco_tune.study.steering import pause_study

        pause_study(StudyFolder(self.folder))

    def __repr__(self) -> str:
        study = self._record()
        ended = sum(run.state == "evaluated" for run in study.runs.values())
        return f"<study {study.name}: {ended} of {len(study.runs)} runs evaluated, in {self.folder}>"

    def _repr_html_(self) -> str:
        study = self._record()
        try:
            table = str(self.ablation().to_html(index=False, float_format="{:.3g}".format, na_rep=""))
        except ReCoTuneError as error:
            table = f"<p>{escape(str(error))}</p>"
        return f"<p><b>{escape(study.name)}</b>: {escape(study.question)}</p>{table}"

    def _record(self) -> StudyRecord:
        return read_study(self.folder)

    @staticmethod
    def _growth(
        space: Space,
        arms: Sequence[str] | Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int],
        trials: int,
        budgets: Sequence[str],
        changes: Mapping[str, Any],
    ) -> Growth:
        """The additions, parsed as the command line parses them."""
        import json

        from reco_tune.api.space import EditableSpace
        from reco_tune.study import Growth
        from reco_tune.study.growth import given_arms

        if isinstance(arms, Mapping):
            given = EditableSpace(space)
            for name, own in arms.items():
                if name in space.arms:
                    raise StudyError(f"the study has arm `{name}` already; give the new one another name")
                given.arms[name] = dict(own)
            new = {name: given.checked.arms[name] for name in arms}
        else:
            new = given_arms(",".join([arms] if isinstance(arms, str) else arms), space) if arms else {}
        words = tuple(f"{key}={json.dumps(value)}" for key, value in changes.items())
        return Growth(new, tuple(seeds), trials, tuple(budgets), words)


def drive(folder: Path, trials: int, progress: bool, work: Callable[[Observer], StudyResult]) -> None:
    """Runs a study in this process.

    Args:
        trials: number of sampled trials that the study asks for.
        progress: whether to show progress.
        work: runs the study and reports to the observer.

    Raises:
        StoppedError: after Ctrl-C.
    """
    from reco_tune.api.progress import observer

    with observer(trials, progress) as listening:
        result = work(listening)
    if result.interrupted:
        raise StoppedError(f"stopped; finished work is kept, and `rt.open({str(folder)!r}).resume()` continues")


class Run:
    """One run of a study."""

    def __init__(self, study: Study, record: RunRecord) -> None:
        self._study, self._record = study, record

    @property
    def trial(self) -> str:
        """Name of the run."""
        return self._record.trial

    @property
    def arm(self) -> str:
        return self._record.arm

    @property
    def state(self) -> str:
        """`evaluated`, `running`, `failed`, ..."""
        return self._record.state

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting under its dotted key."""
        return dict(self._record.settings)

    @property
    def metrics(self) -> dict[str, float]:
        """Latest value of every metric."""
        return dict(self._record.metrics)

    @property
    def folder(self) -> Path:
        """Folder with the run's checkpoints, model and step history."""
        return StudyFolder(self._study.folder).trial(self.trial)

    def model(self) -> Decoder:
        """The trained model, on the CPU.

        Raises:
            CheckpointError: if it is not trained yet, or its model was deleted.
        """
        from reco_tune.training import load_model

        return load_model(self.folder).model

    def generate(
        self, classes: Sequence[str | int] | None = None, seed: int = 0, prompts: Sequence[str] | None = None
    ) -> Clips:
        """Generates one clip for each given class (name or number), or for each prompt if the model was trained on
        texts. By default it generates 16 clips of all classes in turn.

        Raises:
            CheckpointError: if there is no model.
            SettingsError: if the model does not know a class or a prompt.
        """
        from reco_tune.generation.trained import generated, wanted
        from reco_tune.progress import quiet
        from reco_tune.training import load_model

        loaded = load_model(self.folder)
        names = list(loaded.cache.class_names)
        if classes is not None and not len(classes):
            raise SettingsError("classes is empty; give a class for each clip, or leave it out")
        chosen = None if classes is None else [_name(one, names) for one in classes]
        asked = wanted(loaded, chosen, list(prompts or []), None if chosen is None else len(chosen))
        return Clips(generated(loaded, loaded.experiment, asked.given_N, seed, quiet), asked.names)

    def __repr__(self) -> str:
        told = [
            f"{name} {self.metrics[name]:.4g}"
            for name in ("fvd", "speedup", "val_cross_entropy")
            if name in self.metrics
        ]
        return f"<run {self.trial}: {', '.join([self.state, *told])}>"


@dataclass(frozen=True, eq=False)
class Clips:
    """Generated clips."""

    video: NDArray[np.uint8]
    """[clips, frames, channels, height, width]."""
    classes: tuple[str, ...]
    """Class of each clip, or its prompt if the model was trained on texts."""

    def save(self, path: str | Path) -> Path:
        """Writes all clips side by side as `.mp4`, or pixels and classes as `.npz`.

        Raises:
            StudyError: for any other file name extension.
        """
        import numpy as np

        from reco_tune.data.video import write_video
        from reco_tune.generation.trained import grid_video

        path = Path(path)
        if path.suffix not in (".mp4", ".npz"):
            raise StudyError(f"{path} must end in .mp4 (to look at) or .npz (the pixels); change it")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            write_video(path, grid_video(self.video))
        else:
            np.savez_compressed(path, video=self.video, classes=np.array(self.classes))
        return path

    def __len__(self) -> int:
        return len(self.video)

    def __repr__(self) -> str:
        clips, frames, _, height, width = self.video.shape
        return f"<{clips} clips of {frames} frames, {height} x {width}>"

    def _repr_html_(self) -> str:
        """The clips side by side, playing."""
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clips.mp4").read_bytes()).decode()
        return f'<video autoplay loop muted controls src="data:video/mp4;base64,{data}"></video>'


def _name(given: str | int, names: list[str]) -> str:
    """The name of a class given by name or number.

    Raises:
        SettingsError: if the model has no such class.
    """
    if isinstance(given, str) and given in names:
        return given
    if not isinstance(given, str) and 0 <= given < len(names):
        return names[given]
    raise SettingsError(f"{given!r} is not a class of this model; it knows {', '.join(names) or 'none'}")
