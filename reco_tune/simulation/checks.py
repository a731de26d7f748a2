"""Whether the log of a simulated study lost or duplicated anything. It reads the log from disk, independently of the
writer.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from reco_tune.cost import Plan
from reco_tune.settings import SEARCH
from reco_tune.study_log import ENDED, StudyFolder, read_events

LASTED = "it did not end within"
"""Marks a run that hung. Its failure is not a fault of the engine."""


def check_log(plan: Plan, folder: Path) -> list[str]:
    """Every violation, one sentence each."""
    found: list[str] = []
    opened: list[str] = []
    ends: Counter[str] = Counter()
    attempts: dict[str, int] = {}
    reported: dict[str, list[int]] = {}
    sampled, finished, name = 0, 0, ""
    for event in read_events(StudyFolder(folder).events):
        name, run = event["event"], event.get("trial", "")
        finished += name == "finished"
        if name in ("planned", "asked"):
            opened.append(run)
            sampled += name == "asked" and event["arm"] == SEARCH and "repeats" not in event
        elif run and ends[run]:
            found.append(f"{run} is {name} after its end")
        if name in ENDED:
            ends[run] += 1
            if name == "failed" and not event["reason"].startswith(LASTED):
                found.append(f"{run} failed without a simulated cause: {event['reason']}")
        elif name == "started":
            if event["attempt"] <= attempts.get(run, 0):
                found.append(f"attempt {event['attempt']} of {run} began twice")
            attempts[run], reported[run] = event["attempt"], []
        elif name == "reported":
            if reported[run] and event["step"] <= reported[run][-1]:
                found.append(f"{run} reported step {event['step']} twice in one attempt")
            reported[run].append(event["step"])
    found += [f"{run} was dispatched {count} times" for run, count in Counter(opened).items() if count > 1]
    found += [f"{run} never ended" for run in opened if not ends[run]]
    found += [f"{run.trial} was never planned" for run in plan.fixed if run.trial not in opened]
    if sampled != plan.trials and plan.space.sampler.kind != "grid":
        found.append(f"{sampled} configurations were sampled, not {plan.trials}")
    if finished != 1 or name != "finished":
        found.append("the log does not end with the study")
    return found
