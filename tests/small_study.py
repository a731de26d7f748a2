"""The smallest study that has everything: real digits, two arms at both budgets, two sampled trials. Not a test."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from reco_tune import quantities
from reco_tune.settings import Space, load_space
from reco_tune.study_log import RunRecord, StudyFolder, StudyRecord

if TYPE_CHECKING:
    from reco_tune.study import StudyResult
    from reco_tune.study.bookkeeping import Bookkeeping

SPACE = """
question: Does the whole path run?
experiment:
  data: {{layout: digits, clip_frames: 5, size_px: 12, train_clips: 64, test_clips: 32, cache_dir: {cache}}}
  tokenizer: {{num_codes: 24, first_frame_codes: 8, fit_clips: 64}}
  model: {{width: 16, depth: 2, heads: 2}}
  window: {{length_blocks: 2, stride_fraction: 0.5}}
  training: {{steps: 60, batch_size: 8, rungs: 6, learning_rate: 3.0e-3}}
  evaluation: {{samples: 32, reference_clips: 64, validation_clips: 16}}
arms:
  full:
  reco:
budgets: [equal_steps, equal_compute]
search:
  window.length_tokens: {{int: [9, 27]}}
  objective.continuity_weight: {{float: [0.01, 1.0], log: true}}
trials: 2
resources: {{calibration_seconds: 0.3, concurrent_trials: 2}}
"""


@dataclass
class WatchedStudy:
    """A study that ran, and what its observer heard."""

    space: Space
    result: StudyResult
    heard: list[dict[str, Any]]
    """Events in the order in which they were told."""
    progress: list[str]
    """Jobs of which progress was told."""
    phases: list[str]
    seconds: float

    @property
    def folder(self) -> Path:
        return self.result.folder.path

    @property
    def study(self) -> StudyRecord:
        return self.result.study

    @property
    def same_cache(self) -> str:
        """The override by which another study reads this one's token cache."""
        return f"data.cache_dir={self.space.experiment['data']['cache_dir']}"


def small_space(folder: Path, *overrides: str) -> Space:
    """The space, its cache in `folder`."""
    path = folder / "small.yaml"
    path.write_text(SPACE.format(cache=folder / "cache"))
    return load_space(path, overrides)


def run_small_study(folder: Path, *overrides: str) -> WatchedStudy:
    """Runs it in `folder / "study"`."""
    from reco_tune.study import Observer, Options, run

    heard: list[dict[str, Any]] = []
    progress: list[str] = []
    phases: list[str] = []

    class Listener(Observer):
        def on_event(self, event: dict[str, Any]) -> None:
            heard.append(event)

        def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
            progress.append(trial)

        def on_phase(self, done: int, total: int, what: str) -> None:
            phases.append(what)

    space, began = small_space(folder, *overrides), time.monotonic()
    result = run(space, folder / "study", Options(name="small", track=False), Listener())
    return WatchedStudy(space, result, heard, progress, phases, time.monotonic() - began)


def begun(
    undisturbed: WatchedStudy, folder: Path, *, trials: int = 0, done: int = 0, resources: dict[str, Any] | None = None
) -> StudyFolder:
    """A copy of a finished study as it was when its plan had been frozen; it reads the same token cache.

    Args:
        trials: sampled runs that it asks for.
        done: so many of its fixed runs are evaluated already.
    """
    source, study = undisturbed.result.folder, StudyFolder(folder)
    study.path.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(source.settings.read_text())
    settings["trials"] = trials
    settings["resources"] |= resources or {}
    study.settings.write_text(yaml.safe_dump(settings, sort_keys=False))
    lines = source.events.read_text().splitlines(keepends=True)
    head = lines[: 1 + max(place for place, line in enumerate(lines) if '"event":"planned"' in line)]
    names = [run.trial for run in undisturbed.study.runs.values() if run.arm != "search"][:done]
    tail = [line for line in lines[len(head) :] if any(f'"trial":"{name}"' in line for name in names)]
    study.events.write_text("".join(head + tail))
    for name in names:
        shutil.copytree(source.trial(name), study.trial(name))
    return study


_BOOKS: list[Bookkeeping] = []


def books_of(space: Space, study: StudyFolder) -> Bookkeeping:
    """What a driver keeps of a study, begun, without a cluster; its log is closed when the test ends."""
    from reco_tune.cost import plan
    from reco_tune.study.bookkeeping import Bookkeeping

    one = Bookkeeping(plan(space), study)
    one.begin()
    _BOOKS.append(one)
    return one


def close_books() -> None:
    while _BOOKS:
        _BOOKS.pop().writer.close()


def deterministic(run: RunRecord) -> dict[str, Any]:
    """What of a run must be the same bits whenever the same settings run again."""
    metrics = {name: value for name, value in run.metrics.items() if quantities.ALL[name].deterministic}
    return {"settings": run.settings, "metrics": metrics, "curves": run.curves, "params": run.params}


def descendants(of: int | None = None) -> dict[int, str]:
    """Process ids and command lines of all children, theirs included."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if fields[0] != "Z":
                    parents[int(entry.name)] = (int(fields[1]), command)
        except OSError:
            continue  # it ended while we looked
    found: dict[int, str] = {}
    edge = {of or os.getpid()}
    while edge:
        edge = {pid for pid, (parent, _) in parents.items() if parent in edge}
        found |= {pid: parents[pid][1] for pid in edge}
    return found


def ray_processes_left(seconds: float = 20) -> list[str]:
    """Command lines of this process's Ray processes that are still there after so long: they end soon after a cluster,
    not with it.
    """
    end = time.monotonic() + seconds
    while (left := [command for command in descendants().values() if "ray" in command]) and time.monotonic() < end:
        time.sleep(0.2)
    return left
