"""Names, import paths and what is refused of them; and the parts of the page "Extend", alone and all together."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extension import KINDS, PAGE, write_extension

from reco_tune import parts
from reco_tune.cost.planning import plan
from reco_tune.errors import SettingsError
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Space, arm_experiment, load_space, make_experiment, pinned
from reco_tune.testing import check_decoder
from reco_tune.training import fit
from reco_tune.training.checkpoint import load_model


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, importable."""
    path = write_extension(tmp_path / "code")
    monkeypatch.syspath_prepend(str(path.parent))
    yield path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "other")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    parts._identity.cache_clear()
    parts._announced.cache_clear()


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in KINDS for name in parts.BUILT_IN[group]])
def test_built_in_parts_go_through_the_same_door(group: str, name: str) -> None:
    assert callable(parts.load(group, name))
    assert parts.pinned(group, name) == name


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.kind", "transfomer", r"model.kind \('transfomer'\).*did you mean transformer"),
        ("window.scheme", "masked", "did you mean masked_full"),
        ("data.layout", "ucf", "did you mean ucf101"),
        ("tokenizer.kind", "a:b:c", "looks like package.module:Class"),
        ("model.kind", "../evil:Model", "looks like package.module:Class"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(key: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_experiment({}, {key: value}, "test")


def own(mine: Path, **changes: Any) -> Space:
    return load_space(mine, [f"{key}={value}" for key, value in changes.items()])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.options.widht": 8}, r"model.options.widht is not an option of Recurrent; did you mean width"),
        ({"model.kind": "mine.models:Recurent"}, "did you mean Recurrent"),
        ({"model.kind": "nowhere.models:Recurrent"}, "install its package, or put its folder on"),
        ({"model.kind": "mine.layouts:ByPrefix"}, "not a reco_tune.model.Decoder"),
        ({"model.width": 48}, r"model.width \(48\) is for the built-in transformer"),
        ({"training.compile": "true"}, r"training.compile \(True\) is for the built-in transformer"),
        ({"sampler.options.frist": 3}, "did you mean first"),
        ({"objective.options.thresh": 3}, "did you mean threshold"),
    ],
)
def test_options_are_checked_before_anything_starts(mine: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        plan(own(mine, **changes))


def test_options_of_a_built_in_part_are_refused() -> None:
    experiment = make_experiment({}, {"window.options.depth": 3}, "test")
    from reco_tune.settings import check_options

    with pytest.raises(SettingsError, match=r"window.options .*built in"):
        check_options(experiment)


def test_a_pydantic_model_checks_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(
        tmp_path,
        "other",
        OWN_OPTIONS,
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    part = parts.load("losses", "other:Part")
    assert parts.options_of(part, {"size": 3}, "objective.options").size == 3
    with pytest.raises(SettingsError, match=r"objective.options.size \('big'\)"):
        parts.options_of(part, {"size": "big"}, "objective.options")
    forget()


OWN_OPTIONS = """
from pydantic import BaseModel


class Part:
    class Options(BaseModel):
        size: int
"""


def write_module(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)


def test_another_kind_brings_none_of_the_options_of_the_one_before(mine: Path) -> None:
    space = own(mine, **{"arms.second_half.model.kind": "transformer"})
    assert arm_experiment(space, "second_half").model.options == {}
    assert arm_experiment(space, "full").model.options == {"width": 16}
    given = {"arms.second_half.model.kind": "huggingface", "arms.second_half.model.options.path": "x"}
    assert arm_experiment(own(mine, **given), "second_half").model.options == {"path": "x"}


def test_changed_code_is_another_setting(mine: Path) -> None:
    """A study of Monday's code was finished with Tuesday's, and its table showed one arm."""
    before = pinned(own(mine))
    kind = before.experiment["model"]["kind"]
    assert kind.startswith("mine.models:Recurrent@") and before.arms["second_half"]["window.scheme"].count("@") == 1
    assert before.sampler.kind.startswith("mine.samplers:Careful@")
    assert pinned(before) == before
    first = arm_experiment(before, "full").result_hash()
    helper = mine.parent / "mine" / "helper.py"  # another file of the package counts too
    helper.write_text("X = 1\n")
    forget()
    after = pinned(own(mine))
    assert arm_experiment(after, "full").result_hash() != first
    with pytest.raises(SettingsError, match="restore that code, or begin a new study"):
        plan(before)
    helper.unlink()
    forget()
    assert pinned(own(mine)) == before


def test_a_study_pins_parts_wherever_they_are_named(mine: Path) -> None:
    """A condition on a part never held, because only the range was pinned, and points lay outside of their range."""
    kinds = ["transformer", "mine.models:Recurrent"]
    given = own(mine).model_dump(exclude={"sampler"}) | {
        "search": {
            "model.kind": {"choice": kinds},
            "window.first_frame_probability": {"float": [0.0, 1.0], "when": {"model.kind": [kinds[1]]}},
        },
        "points": [{"model.kind": kinds[1], "window.first_frame_probability": 0.5}],
        "trials": 2,
    }
    space = pinned(Space.model_validate(given))
    kind = space.search["model.kind"].choice[1]
    assert kind.startswith("mine.models:Recurrent@")
    assert space.search["window.first_frame_probability"].when == {"model.kind": (kind,)}
    assert space.points[0]["model.kind"] == kind
    again = Space.model_validate(space.model_dump(mode="json"))
    assert again.points == space.points and pinned(again) == again


@pytest.mark.parametrize("mark", parts.OUR_FOLDERS)
def test_nothing_is_imported_from_what_this_program_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """A checkpoint from elsewhere must not run its own code."""
    write_module(tmp_path / "run", "other", "raise SystemExit('it ran')\n")
    (tmp_path / "run" / mark).touch()
    monkeypatch.syspath_prepend(str(tmp_path / "run"))
    with pytest.raises(SettingsError, match="code from there is never run"):
        parts.load("models", "other:Model")


def test_packages_announce_parts(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = [EntryPoint("recurrent", "mine.models:Recurrent", "reco_tune.models")]
    announced += [EntryPoint("transformer", "mine.models:Recurrent", "reco_tune.models")]
    monkeypatch.setattr(parts, "entry_points", lambda group: announced if group == "reco_tune.models" else [])
    parts._announced.cache_clear()
    assert parts.names("models")[-1] == "recurrent"
    assert parts.load("models", "transformer").__name__ == "VideoTransformer", "built-in names win"
    assert parts.pinned("models", "recurrent").startswith("mine.models:Recurrent@"), "recorded by its import path"
    announced.append(EntryPoint("recurrent", "other:Model", "reco_tune.models"))
    parts._announced.cache_clear()
    with pytest.raises(SettingsError, match="two packages announce recurrent"):
        parts.load("models", "recurrent")


def test_the_page_shows_every_kind_in_a_few_lines() -> None:
    blocks = PAGE.read_text().split("```python title=")[1:]
    lengths = {block.split('"')[1]: block.split("```")[0].count("\n") for block in blocks}
    assert set(lengths) == {f"mine/{kind}.py" for kind in KINDS}
    assert all(5 <= length <= 31 for length in lengths.values()), lengths


def write_videos(root: Path) -> Path:
    from reco_tune.data.video import write_video

    root.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for number in range(count):
            video = random.integers(0, 255, (5, 12, 12, 3), dtype=np.uint8)
            write_video(root / f"{split}_{'walk' if number % 2 else 'run'}_{number:03}.avi", video, lossless=True)
    return root


def test_the_decoder_of_the_page_is_one(mine: Path) -> None:
    check_decoder(parts.load("models", "mine.models:Recurrent")(16, 18, 2))


def test_each_example_is_tokenised_trained_and_resumed(mine: Path, tmp_path: Path) -> None:
    where = {"data.root": write_videos(tmp_path / "videos"), "data.cache_dir": tmp_path / "cache"}
    planned = plan(own(mine, **where))
    experiment = planned.arms["second_half"]
    cache = prepare_tokens(experiment)
    assert list(cache.class_names) == ["run", "walk"] and cache.num_codes == 16
    again = prepare_tokens(experiment)
    assert again.fingerprint == cache.fingerprint, "the fitted tokenizer was found again"
    whole = fit(experiment, cache, tmp_path / "whole")
    assert whole.metrics["loss_tokens"] == 12 * 4 * 9, "half of the window is judged"
    without = make_experiment(experiment.model_dump(mode="json"), {"objective.term_weight": 0.0}, "test")
    assert fit(without, cache, tmp_path / "without").metrics["val_cross_entropy"] != whole.metrics["val_cross_entropy"]
    loaded = load_model(tmp_path / "whole")
    assert type(loaded.model).__name__ == "Recurrent" and loaded.experiment.model.kind == experiment.model.kind
    stopped = fit(experiment, cache, tmp_path / "parts", report=lambda step, metrics: step < 12)
    assert stopped.stopped
    resumed = fit(experiment, cache, tmp_path / "parts")
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs), "it goes on in the same bits"
    labels = torch.tensor([0, 1])
    assert torch.equal(
        loaded.model.generate(labels, temperature=0.0), whole.model.eval().generate(labels, temperature=0.0)
    )
