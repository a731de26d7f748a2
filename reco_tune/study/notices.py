"""Sends the messages that a study's `on_event` asks for, by shell command or webhook: the study has ended, a run has
failed, a run is the best so far.

It is an observer between the study and its view. One thread sends. The study waits for it only at its end, for at most
the time limit of one message. If a message cannot be sent, the view shows one line.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import threading
import urllib.request
from contextlib import suppress
from typing import Any

from reco_tune import quantities as q
from reco_tune.settings import Space
from reco_tune.study.observer import Observer
from reco_tune.study_log import StudyFolder, StudyRecord

SECONDS = 30.0
"""Longest that one message may take."""
MOST_WAITING = 100
"""Largest number of waiting messages; more are dropped. If all runs of a study fail, a few messages are enough."""

Message = dict[str, Any]
"""`event`, `study`, `folder`, `run` (empty for a study), `text` (one sentence) and `metrics` of the run."""


class Notices(Observer):
    """An observer that passes events on to the view and sends messages."""

    def __init__(self, view: Observer, space: Space, folder: StudyFolder, study: StudyRecord) -> None:
        """
        Args:
            view: the observer that shows the study.
            study: the live record of the study, to find the best runs so far.
        """
        self.on_phase, self.on_progress = view.on_phase, view.on_progress  # type: ignore[method-assign]
        self._view, self._space, self._folder, self._study = view, space, folder, study
        self._best: dict[str, float] = {}
        for run in study.runs.values():
            if run.state == "evaluated" and not run.reason and not run.tunes:
                self._beats(run.metrics)
        self._waiting: queue.Queue[tuple[str, Message] | None] = queue.Queue(MOST_WAITING)
        self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="notices", daemon=True)
        self._thread.start()

    def on_event(self, event: dict[str, Any]) -> None:
        self._view.on_event(event)
        name, run = event["event"], event.get("trial", "")
        if name == "finished":
            states = [one.state for one in self._study.runs.values()]
            failed = f", {states.count('failed')} failed" if "failed" in states else ""
            self._tell("end", f"the study {self._study.name} has ended: {len(states)} runs{failed}")
        elif name == "failed":
            self._tell("failure", f"{run} of {self._study.name} has failed: {event.get('reason', '')}", run)
        elif name == "evaluated" and not event.get("reason") and not self._tunes(run):
            known = bool(self._best)
            better = self._beats(event["metrics"])
            if better and known:
                told = ", ".join(f"{q.ALL[metric].label} {event['metrics'][metric]:.4g}" for metric in better)
                self._tell("new_best", f"{run} of {self._study.name} is the best so far: {told}", run, event["metrics"])

    def stopped_by(self, error: Exception) -> None:
        """The study could not continue."""
        self._tell("failure", f"the study {self._study.name} has stopped: {error}")

    def close(self) -> None:
        """Sends the remaining messages, for at most the time limit of one message."""
        self._closing = True
        with suppress(queue.Full):  # if the queue is full, the thread sees the closing flag
            self._waiting.put_nowait(None)
        self._thread.join(SECONDS)

    def _tunes(self, run: str) -> bool:
        """Whether a run only helps to choose settings."""
        return run in self._study.runs and self._study.runs[run].tunes

    def _beats(self, metrics: dict[str, float]) -> list[str]:
        """Objectives in which a run is better than all before. Measured speeds are left out, because they are noisy."""
        better = []
        for metric, direction in self._space.objectives.items():
            value = metrics.get(metric, math.nan)
            lower = value if direction == "minimize" else -value
            if q.ALL[metric].deterministic and lower < self._best.get(metric, math.inf):
                self._best[metric] = lower
                better.append(metric)
        return better

    def _tell(self, event: str, text: str, run: str = "", metrics: dict[str, float] | None = None) -> None:
        message = {
            "event": event,
            "study": self._study.name,
            "folder": str(self._folder.path.resolve()),
            "run": run,
            "text": text,
            "metrics": metrics or {},
        }
        for command in self._space.on_event.commands(event):
            with suppress(queue.Full):
                self._waiting.put_nowait((command, message))

    def _send_all(self) -> None:
        while (next_one := self._waiting.get()) is not None:
            command, message = next_one
            try:
                send(command, message)
            except Exception as error:  # an error of the shell or the server must not stop the study
                why = " ".join(str(error).split())[:200] or type(error).__name__
                self._view.on_phase(1, 1, f"on_event.{message['event']} was not sent: {why}")
            if self._closing and self._waiting.empty():
                return


def send(command: str, message: Message) -> None:
    """Runs a shell command with the message as JSON on standard input and its parts as environment variables
    (RECO_TUNE_EVENT, ..._TEXT), or posts the message to a webhook.

    Args:
        command: the shell command, or an address that begins with http:// or https://. An address with a secret can be
            in an environment variable ($NAME).

    Raises:
        OSError, RuntimeError: if that fails or takes longer than `SECONDS`.
    """
    if (name := command.strip()).startswith("$") and name[1:].isidentifier() and name[1:] not in os.environ:
        raise RuntimeError(f"the environment variable {name[1:]} is not set")
    address, body = os.path.expandvars(command.strip()), json.dumps(message).encode()
    if address.startswith(("http://", "https://")):
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                return
        except OSError as error:  # without the address: it may hold a secret
            raise RuntimeError(
                f"the webhook answered with {type(error).__name__} {getattr(error, 'code', '')}"
            ) from None
    told = {f"RECO_TUNE_{name.upper()}": str(message[name]) for name in ("event", "study", "folder", "run", "text")}
    shell = subprocess.Popen(
        command,
        shell=True,
        env=os.environ | told,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = shell.communicate(body, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        raise RuntimeError(f"it took longer than {SECONDS:g} s") from None
    if shell.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"exit code {shell.returncode} {''.join(last)}")
