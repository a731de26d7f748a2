"""Requests of other processes to a running study: files in its folder, which its driver reads, answers in the log and
deletes. Works wherever the folder is visible, without a server.

A request is one JSON file, which is either complete or absent. The event that answers it (`extended`, or `requested`
for all others) has its name. So the sender can read the answer in the log, and a driver that died before it deleted the
file does not handle it twice. A request that the driver has not handled yet can be withdrawn.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reco_tune.errors import StoppedError, StudyError, command
from reco_tune.files import write_json
from reco_tune.study_log import Follower, StudyFolder

ANSWER_SECONDS = 30.0
"""How long to wait for an answer. A driver that encodes videos or starts Ray does not answer meanwhile."""
LOOK_SECONDS = 0.5
"""Time between two looks for an answer. The driver looks for requests as often."""

What = Literal["extend", "stop", "retry", "pause"]


@dataclass(frozen=True)
class Request:
    """A request to a running study."""

    name: str
    what: What
    fields: dict[str, Any] = field(default_factory=dict)
    """The additions (`growth`) of an extension; `runs` to stop or to retry."""


def ask(folder: StudyFolder, what: What, **fields: Any) -> Request:
    """Writes a request for the driver of a running study."""
    folder.requests.mkdir(exist_ok=True)
    request = Request(f"{time.time_ns()}-{uuid.uuid4().hex[:8]}", what, fields)
    write_json(_file(folder, request), {"what": what, **fields})
    return request


def waiting(folder: StudyFolder) -> list[Request]:
    """Requests that are not handled yet, oldest first; skips invalid files."""
    found = []
    for path in sorted(folder.requests.glob("*.json")) if folder.requests.is_dir() else []:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            found.append(Request(path.stem, fields.pop("what"), fields))
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # just taken back, or another program's
    return found


def remove(folder: StudyFolder, request: Request) -> bool:
    """Deletes a request; False if it was gone already."""
    try:
        _file(folder, request).unlink()
    except FileNotFoundError:
        return False
    return True


def answer(folder: StudyFolder, request: Request, seconds: float = ANSWER_SECONDS) -> dict[str, Any] | None:
    """Waits for the event that answers a request. None if the study is no longer running and the request was withdrawn,
    or on timeout.

    Raises:
        StudyError: if the study refused it, with its reason.
    """
    log, deadline = Follower(folder.events), time.monotonic() + seconds
    while True:
        gone = not folder.live and remove(folder, request)
        for event in log.poll():
            if event.get("request") == request.name:
                if event.get("refused"):
                    raise StudyError(event["refused"])
                return event
        if gone or time.monotonic() > deadline:
            return None
        time.sleep(LOOK_SECONDS)


def answered(folder: StudyFolder, what: What, **fields: Any) -> dict[str, Any] | None:
    """Sends a request to the driver of a study, and waits for the answer; None if the study is not running.

    Raises:
        StudyError: if the study refuses the request.
        StoppedError: if it has not answered yet.
    """
    if not folder.live:
        return None
    event = answer(folder, ask(folder, what, **fields))
    if event is None and folder.live:
        raise StoppedError(
            f"the study is busy ({folder.driver}) and will answer as soon as its workers run;"
            f" `{command('status', folder.path)}` shows its progress"
        )
    return event


def _file(folder: StudyFolder, request: Request) -> Path:
    return folder.requests / f"{request.name}.json"
