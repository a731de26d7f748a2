"""What `reco-tune settings` prints and editors read: as the loader takes it, not more and not less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from test_cli import refused, say

from reco_tune.bundled import bundled
from reco_tune.settings import Space, known_keys
from reco_tune.settings.described import FileKind, experiment_groups, file_schema, find_settings, space_groups

SPACES = sorted(bundled("search_spaces").glob("*.yaml"))
EXPERIMENTS = sorted((bundled("search_spaces") / "experiments").glob("*.yaml"))


def test_every_setting_is_described_once_and_means_something() -> None:
    groups = [*experiment_groups(), *space_groups()]
    keys = [one.key for group in groups for one in group.settings]
    assert len(keys) == len(set(keys))
    assert set(known_keys()) <= set(keys)
    assert set(Space.model_fields) - {"source"} <= {key.split(".")[0] for key in keys}
    assert all(one.kind and one.meaning for group in groups for one in group.settings)


KINDS = {
    "training.steps": ("whole number (≥ 1)", "1000"),
    "data.test_fraction": ("number (> 0, < 1)", "0.2"),
    "data.root": ("path", ""),
    "data.grid": ("[whole number (≥ 1), whole number (≥ 1), whole number (≥ 1)]", ""),
    "window.first_frame_probability": ("number, `uniform`", "0.5"),
    "training.compile": ("true or false", "false"),
    "model.preset": ("`debug`, `110M`, `343M`, `770M`", ""),
    "budgets": (
        "list of `equal_steps`, `equal_compute`, `half_compute`, `quarter_compute`, `eighth_compute`,"
        " `equal_cost_curve`",
        "[equal_steps]",
    ),
    "question": ("text", "required"),
    "evaluation.measure": ("import path", ""),
    "search.NAME.int": ("[whole number, whole number]", ""),
}


@pytest.mark.parametrize("key", KINDS)
def test_a_type_is_told_in_words(key: str) -> None:
    (one,) = find_settings(key)
    assert (one.kind, one.default) == KINDS[key]


def test_a_section_lists_its_settings_and_a_wrong_key_names_the_nearest() -> None:
    own = ["sampler.kind", "sampler.tell_arms", "sampler.seed", "sampler.options"]
    assert [one.key for one in find_settings("sampler")] == own
    assert {"resources", "resources.workers"} <= {one.key for one in find_settings("resources")}
    assert say("settings", "sampler").out.count("\n    ") > 3
    refused(say("settings", "window.lenght_tokens"), r"did you mean window.length_tokens\?")
    refused(say("settings", "windw"), r"did you mean window\?")
    refused(say("settings", "window", "--schema", "space"), "leave window out")


@pytest.mark.parametrize("path", [*SPACES, *EXPERIMENTS], ids=lambda path: path.stem)
def test_a_schema_takes_every_shipped_file(path: Path) -> None:
    found = _mistakes("space" if path in SPACES else "experiment", yaml.safe_load(path.read_text()))
    assert found == []


WRONG: dict[str, Any] = {
    "no key of a space": {"trails": 4},
    "no setting": {"experiment": {"window": {"lenght_blocks": 2}}},
    "no setting, dotted": {"experiment": {"window.lenght_blocks": 2}},
    "below its range": {"experiment": {"training": {"steps": 0}}},
    "a word that is none": {"experiment": {"data": {"layout": "folder"}}},
    "an arm's": {"arms": {"mine": {"objective.continuity_wieght": 1.0}}},
    "a searched one": {"search": {"window.size": {"int": [1, 2]}}},
    "an option of no part": {"search": {"training.options.rank": {"int": [1, 2]}}},
    "an option's range": {"search": {"model.options.rank": {"whole": [1, 2]}}},
    "no range": {"search": {"window.length_tokens": {"whole": [1, 2]}}},
    "a sampler's": {"sampler": {"kind": "best"}},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_a_schema_refuses_what_the_loader_refuses(wrong: dict[str, Any]) -> None:
    right = {"question": "q", "experiment": {"window.length_blocks": 2}, "arms": {"full": None, "mine": {"a": {}}}}
    right["arms"]["mine"] = {"objective.continuity_weight": 0.5, "window": {"schedule": "short_to_long"}}
    right["search"] = {"model.options.lora.rank": {"choice": [4, 16]}}
    right["arms"]["full"] = {"model.options.config.hidden_size": 64}
    assert _mistakes("space", right) == []
    assert len(_mistakes("space", {**right, **wrong})) >= 1


def test_the_command_prints_the_schema() -> None:
    assert json.loads(say("settings", "--schema", "space").out) == file_schema("space")


def _mistakes(kind: FileKind, values: dict[str, Any]) -> list[str]:
    return [mistake.message for mistake in _validator(kind).iter_errors(values)]


@cache
def _validator(kind: FileKind) -> Draft202012Validator:
    schema = file_schema(kind)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


COMPLETED = {
    "a verb": ("reco-tune sett", "settings"),
    "a setting": ("reco-tune settings training.st", "training.steps"),
    "an override": ("reco-tune run --set window.sche", "window.schedule="),
    "a space": ("reco-tune run joi", "joint"),
}


@pytest.mark.parametrize("typed", COMPLETED, ids=list(COMPLETED))
def test_a_shell_completes(typed: str) -> None:
    line, expected = COMPLETED[typed]
    asked = {"_RECO_TUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    program = [sys.executable, "-c", "from reco_tune.cli import main; main()"]
    done = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True)
    assert expected in done.stdout.splitlines(), done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`reco-tune settings | head` ended in an unexpected error."""
    program = [sys.executable, "-m", "reco_tune", "settings"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
