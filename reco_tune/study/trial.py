"""Tune's side of a study: the light trial that stands for a job, and the searcher that gives Tune the next one.

Knows the dispatcher's `follow` and Tune; knows nothing of settings, models or Optuna. Imports no torch, and actors are
reused, so a trial costs only a few round trips.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.exceptions import ActorDiedError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

Suggestion = dict[str, Any] | str | None
"""A trial's configuration (`dispatcher`, `trial`), `Searcher.FINISHED`, or None: ask again later."""


def follow(config: dict[str, Any]) -> None:
    """The Tune trial: starts its job at the dispatcher, passes the job's rung reports on to Tune, and ends with the
    job. Also ends if the dispatcher is gone, which the driver notices by itself.
    """
    seen, outcome = 0, None
    while outcome is None:
        try:
            dispatcher = ray.get_actor(config["dispatcher"])
            reports, outcome, seen = ray.get(dispatcher.follow.remote(config["trial"], seen))  # those seen are judged
        except (ValueError, ActorDiedError):  # no actor of that name, or no longer
            return
        for report in reports:
            seen += 1
            tune.report(report)  # returns when the scheduler has judged it
    tune.report({"outcome": outcome})


class NoTrialOutput(TrialProgressCallback):
    """Silences Tune's message that a trial ended without a result, which ignores verbosity. The study's observer
    reports the end of every run.
    """

    def _print(self, msg: str) -> None:
        """Nothing."""


class Proposals(Searcher):
    """Tune's searcher: asks for the next trial. Results come from the log, not from Tune."""

    def __init__(self, propose: Callable[[], Suggestion] | None = None, room: Callable[[], int] = lambda: 1) -> None:
        """Args: room: how many trials may exist at once. It grows when machines join; Tune's own limit is fixed."""
        super().__init__()
        self._propose, self._room = propose, room
        self._live: set[str] = set()
        """Tune's trials that have not ended."""

    def suggest(self, trial_id: str) -> Suggestion:
        if len(self._live) >= self._room():
            return None
        proposal = self._propose() if self._propose is not None else Searcher.FINISHED
        if proposal is None and not self._live:
            return Searcher.FINISHED  # nobody is at work: what the study waits for was lost with its trial
        if isinstance(proposal, dict):
            self._live.add(trial_id)
        return proposal

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: the dispatcher's events report the outcome."""
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the log is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the log is the truth."""

    def __reduce__(self) -> tuple[type[Proposals], tuple[()]]:
        return (Proposals, ())  # Tune pickles its configuration; a restored one is never used
