"""Messages of a study to people: the right ones, to a real shell and a real server, and never in the study's way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import small_space

from reco_tune.cost import plan
from reco_tune.errors import ReCoTuneError
from reco_tune.settings import load_space
from reco_tune.settings.space import OnEvent
from reco_tune.study import Observer, Options, notices
from reco_tune.study.notices import Notices, send
from reco_tune.study.runner import Driver
from reco_tune.study.study_writer import freeze, frozen
from reco_tune.study_log import RunRecord, StudyFolder, StudyRecord, read_events

MESSAGE = {"event": "end", "study": "toy", "folder": "/x", "run": "", "text": "it's over", "metrics": {}}


class View(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[str] = []

    def on_phase(self, done: int, total: int, what: str) -> None:
        self.lines.append(what)

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event["event"])


def told(
    tmp_path: Path, study: StudyRecord, *events: dict[str, Any], command: str | None = None
) -> tuple[list[Any], View]:
    """What the shell got of these events, each message a line of JSON."""
    out, view = tmp_path / "told", View()
    line = command or f"cat >> {out}; echo >> {out}"
    space = small_space(tmp_path).model_copy(update={"on_event": OnEvent(end=line, failure=line, new_best=line)})
    one = Notices(view, space, StudyFolder(tmp_path / "study"), study)
    for event in events:
        one.on_event(event)
    one.close()
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else [], view


def evaluated(trial: str, fvd: float, speedup: float = 1.0, reason: str = "") -> dict[str, Any]:
    return {"event": "evaluated", "trial": trial, "metrics": {"fvd": fvd, "speedup": speedup}, "reason": reason}


def test_a_study_tells_its_end_failures_and_bests(tmp_path: Path) -> None:
    runs = {name: RunRecord(name, 0, "full", "both", 0, "evaluated") for name in ("a", "b")}
    messages, view = told(
        tmp_path,
        StudyRecord(name="toy", runs=runs),
        evaluated("first", 5.0),
        evaluated("worse but faster", 6.0, speedup=9.0),
        evaluated("not allowed", 1.0, reason="fvd is 1, not at least 2"),
        evaluated("better", 4.0),
        {"event": "failed", "trial": "lost", "reason": "out of memory"},
        {"event": "finished"},
    )
    assert [(one["event"], one["run"]) for one in messages] == [
        ("new_best", "better"),
        ("failure", "lost"),
        ("end", ""),
    ]
    best, failure, end = messages
    assert "FVD 4" in best["text"] and best["metrics"]["fvd"] == 4.0
    assert failure["text"] == "lost of toy has failed: out of memory"
    assert end["text"] == "the study toy has ended: 2 runs" and Path(end["folder"]) == (tmp_path / "study").resolve()
    assert view.events == ["evaluated"] * 4 + ["failed", "finished"] and not view.lines


def test_a_resumed_study_knows_what_was_best(tmp_path: Path) -> None:
    run = RunRecord("a", 0, "full", "both", 0, "evaluated", metrics={"fvd": 2.0})
    messages, _ = told(tmp_path, StudyRecord(name="toy", runs={"a": run}), evaluated("b", 3.0), evaluated("c", 1.0))
    assert [one["run"] for one in messages] == ["c"]


def test_a_study_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    """Through the driver itself, up to where Ray would come in."""
    out = tmp_path / "out"
    space = small_space(
        tmp_path, f"on_event.failure=printenv RECO_TUNE_TEXT > {out}", f"data.cache_dir={tmp_path / 'full'}"
    )
    (tmp_path / "full").write_text("no folder")
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()
    freeze(space, folder)
    assert yaml.safe_load(folder.settings.read_text())["on_event"]["failure"].startswith("printenv")
    with pytest.raises(ReCoTuneError, match="cache folder"):
        Driver(plan(load_space(folder.settings)), folder, Options(track=False), Observer()).drive()
    assert out.read_text().startswith("the study study has stopped: ")
    first = next(iter(read_events(folder.events)))
    assert "on_event" not in first["settings"], "a log is mirrored, and an address may hold a secret"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo no such desk >&2; exit 3", "exit code 3 no such desk"),
        ("sleep 60", "took longer than"),
        ("http://127.0.0.1:9/hook?secret=1", "the webhook answered with"),
        ("$NO_SUCH_NAME", "NO_SUCH_NAME is not set"),
    ],
    ids=["exit code", "hangs", "nobody listens", "unset"],
)
def test_what_cannot_be_sent_is_one_line(
    command: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SECONDS", 0.5)
    began = time.monotonic()
    messages, view = told(tmp_path, StudyRecord(name="toy"), {"event": "finished"}, command=command)
    time.sleep(0.3)  # the thread that was not waited for any longer
    assert time.monotonic() - began < 5 and not messages
    assert len(view.lines) == 1 and view.lines[0].startswith("on_event.end was not sent: ") and why in view.lines[0]
    assert "secret" not in view.lines[0]


def test_a_study_does_not_wait_for_a_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SECONDS", 0.5)
    failures = [
        {"event": "failed", "trial": f"run-{number}", "reason": "x"} for number in range(3 * notices.MOST_WAITING)
    ]
    began = time.monotonic()
    told(tmp_path, StudyRecord(name="toy"), *failures, command="sleep 60")
    assert time.monotonic() - began < 5


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """An address, and what was posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200 if self.path == "/hook" else 404)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    one = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{one.server_port}", got
    one.shutdown()
    one.server_close()


def test_a_webhook_gets_the_message(server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, got = server
    monkeypatch.setenv("HOOK", f"{address}/hook")
    send(f"{address}/hook", MESSAGE)
    send("$HOOK", MESSAGE)
    assert got == [("/hook", MESSAGE)] * 2
    with pytest.raises(RuntimeError, match="HTTPError 404"):
        send(f"{address}/gone", MESSAGE)


def test_several_are_told(tmp_path: Path) -> None:
    space = frozen(small_space(tmp_path, "on_event.end=[one, two]", "on_event.failure=three"))
    assert [space.on_event.commands(name) for name in ("end", "failure", "new_best")] == [
        ("one", "two"),
        ("three",),
        (),
    ]
