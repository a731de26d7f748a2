"""The event log survives a killed writer, says where it is damaged, and replays into the state it recorded."""

import hashlib
import json

import pytest
from toy_study import record_study

from reco_tune.errors import StudyError
from reco_tune.study_log import EventLog, Follower, StudyFolder, read_events, read_study, replay


def planned(trial, **more):
    common = {"arm": "reco", "budget": "equal_steps", "seed": 0, "settings": {"a.b": 1}, "settings_hash": "h"}
    return {"event": "planned", "time": 1.0, "trial": trial, **common, **more}


OPENED = {"name": "toy", "question": "?", "arms": [], "provenance": {}}


def test_what_is_appended_is_read_back(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    written = [
        log.append("study", **OPENED),
        log.append("started", trial="a", attempt=1),
        log.append("reported", trial="a", step=3, metrics={"fvd": 0.1}),
    ]
    assert list(read_events(tmp_path / "events.jsonl")) == written


def test_a_name_that_is_no_unicode_is_read_back(tmp_path):
    """File names of other encodings come to Python with lone surrogates, which are no text to most parsers of JSON."""
    name = b"caf\xe9.avi".decode("utf-8", "surrogateescape")
    path = tmp_path / "events.jsonl"
    written = EventLog(path).append("study", **{**OPENED, "name": name})
    follower = Follower(path)
    assert list(read_events(path)) == [written] and follower.poll() == [written]


def test_a_torn_last_line_is_left_out_by_readers_and_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).append("study", **OPENED)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"repor')
    assert len(list(read_events(path))) == 1
    log = EventLog(path)
    assert log.repaired == '{"event":"repor'
    log.append("finished")
    assert [event["event"] for event in read_events(path)] == ["study", "finished"]


def test_an_undamaged_log_is_not_repaired(tmp_path):
    EventLog(tmp_path / "events.jsonl").append("finished")
    assert EventLog(tmp_path / "events.jsonl").repaired == ""


def test_a_damaged_line_inside_is_named_by_its_number(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"study","time":1}\nnot json\n{"event":"finished","time":2}\n')
    with pytest.raises(StudyError, match="line 2, is damaged"):
        list(read_events(path))


@pytest.mark.parametrize(
    ("first", "named"),
    [('{"event":"started","trial":"a","attempt":1,"time":1}', "`started`"), ('["a", "list"]', r"\['a', 'list'\]")],
    ids=["its first line is lost", "another program's"],
)
def test_a_log_without_its_first_line_is_not_empty(tmp_path, first, named):
    """`sync` called it empty, and `resume` opened a study in its middle."""
    path = tmp_path / "events.jsonl"
    path.write_text(f"{first}\n")
    for read in (lambda: list(read_events(path)), Follower(path).poll):
        with pytest.raises(StudyError, match=f"events.jsonl does not begin with the event `study`, but with {named}"):
            read()


def test_a_study_is_the_same_whatever_a_copy_makes_of_line_ends(tmp_path):
    """Its identity was that of the bytes, so MLflow held another study once a copy had passed a Windows share."""
    folder = StudyFolder(tmp_path)
    EventLog(folder.events).append("study", **OPENED)
    identity, line = folder.identity, folder.events.read_bytes()
    assert identity == hashlib.sha256(line).hexdigest()[:16], "as ever"
    for end in (b"\r\n", b""):
        folder.events.write_bytes(line.rstrip(b"\n") + end)
        assert folder.identity == identity
    other = StudyFolder(tmp_path / "other")
    EventLog(other.events).append("study", **{**OPENED, "name": "other"})
    assert other.identity != identity


def test_a_folder_without_a_log_is_no_study(tmp_path):
    with pytest.raises(StudyError, match="is not a study folder"):
        read_study(tmp_path)


def test_a_value_that_is_not_finite_never_enters_the_log(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError):
        log.append("completed", trial="a", metrics={"fvd": float("nan")})
    assert (tmp_path / "events.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "planned"),
        (["started"], "running"),
        (["started", "completed"], "completed"),
        (["started", "completed", "evaluated"], "evaluated"),
        (["started", "pruned"], "pruned"),
        (["started", "failed"], "failed"),
        (["started", "retried"], "planned"),
        (["started", "retried", "started", "completed", "evaluated"], "evaluated"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, list) else value,
)
def test_states(events, state):
    assert (
        replay([planned("a"), *({"event": name, "time": 2.0, "trial": "a", "attempt": 1} for name in events)])
        .runs["a"]
        .state
        == state
    )


def test_a_retried_run_reports_a_rung_again_and_the_last_word_counts():
    reports = [
        {"event": "reported", "time": 2.0, "trial": "a", "step": step, "metrics": {"fvd": value}}
        for step, value in [(1, 9), (2, 8), (1, 7)]
    ]
    run = replay([planned("a"), *reports]).runs["a"]
    assert run.reports == [{"step": 1, "fvd": 7}]
    assert run.metrics["fvd"] == 7


def test_runs_keep_the_order_in_which_they_were_planned(tmp_path):
    study = read_study(record_study(tmp_path / "toy", arms=("full", "reco"), searched=2, files=False))
    assert list(study.runs) == ["full-s0", "reco-equal_steps-s0", "reco-equal_compute-s0", "search-0000", "search-0001"]
    assert [run.index for run in study.runs.values()] == [0, 1, 2, 3, 4]
    assert (study.finished, study.arms, study.calibrations["reco"]["speedup"]) == (True, ["full", "reco"], 1.92)
    assert study.runs["search-0001"].state == "pruned"


def test_every_prefix_of_a_log_replays(tmp_path):
    """To a state that only grows: a run that is known stays, and one that is done stays done."""
    folder = StudyFolder(record_study(tmp_path / "toy", arms=("full",), searched=1, files=False))
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    known, done = [], set()
    for count in range(len(events) + 1):
        study = replay(events[:count])
        assert list(study.runs)[: len(known)] == known and study.finished == (count == len(events))
        known = list(study.runs)
        ended = {trial for trial, run in study.runs.items() if run.state in ("evaluated", "pruned")}
        assert done <= ended
        done = ended
    assert done == {"full-s0", "search-0000"}
