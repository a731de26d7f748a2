"""Captions of every layout, as words in the token cache of its clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from reco_tune.cli import app
from reco_tune.data.captions import captions_of
from reco_tune.data.clips import Clip
from reco_tune.data.layouts import SPLITS, list_videos
from reco_tune.data.synthetic import digit_and_motion
from reco_tune.data.token_cache import TokenCache
from reco_tune.data.word_list import WordList
from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation.prompted_digits import motion_signs, prompt_hits
from reco_tune.evaluation.sampling_plan import asked_for
from reco_tune.generation.trained import generated, wanted
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import quiet
from reco_tune.settings import Data, Experiment, TokenGrid, make_experiment
from reco_tune.training import build_scheme, fit, load_model
from reco_tune.training.feed import Feed
from reco_tune.training.schemes import plan_scheme

GRID = TokenGrid(5, 3, 3)
TEXT = {"model.condition": "text", "model.text_tokens": 6}


def changed(experiment: Experiment, overrides: dict[str, object]) -> Experiment:
    return make_experiment(json.loads(experiment.model_dump_json()), overrides, where="test")


def msrvtt_at(root: Path) -> Data:
    """Two videos of each split but one for validation, as the JSON of MSR-VTT names them."""
    kinds = ["train", "train", "validate", "test", "test"]
    notes = {
        "info": {},
        "videos": [{"video_id": f"video{n}", "split": kind, "category": n % 2} for n, kind in enumerate(kinds)],
        "sentences": [
            {"sen_id": 10 * k + n, "video_id": f"video{n}", "caption": f"caption {k} of {n}"}
            for k in range(3)
            for n in range(5)
        ],
    }
    (root / "annotation").mkdir()
    (root / "annotation" / "MSRVTT_data.json").write_text(json.dumps(notes))
    (root / "annotation" / "other.json").write_text("[1, 2]")
    (root / "videos" / "all").mkdir(parents=True)
    for number in range(5):
        (root / "videos" / "all" / f"video{number}.mp4").write_bytes(bytes([number]))
    return Data(layout="msrvtt", root=root)


def test_msrvtt_has_its_official_split(tmp_path: Path) -> None:
    videos = list_videos(msrvtt_at(tmp_path))
    found = {video.path.name: (video.split, video.class_name, bool(video.refused)) for video in videos}
    assert found == {
        "video0.mp4": ("train", "category 0", False),
        "video1.mp4": ("train", "category 1", False),
        "video2.mp4": (None, "category 0", True),
        "video3.mp4": ("test", "category 1", False),
        "video4.mp4": ("test", "category 0", False),
    }
    (tmp_path / "annotation" / "MSRVTT_data.json").write_text("{")
    with pytest.raises(DataError, match="not a readable JSON of MSR-VTT"):
        list_videos(Data(layout="msrvtt", root=tmp_path))


def test_captions_follow_the_rule(tmp_path: Path) -> None:
    data = msrvtt_at(tmp_path)
    clips = {
        split: [Clip(Path(f"videos/all/video{n}.mp4"), start, 0) for n in numbers for start in (0, 17)]
        for split, numbers in (("train", (0, 1)), ("test", (3, 4)))
    }
    first = captions_of(data, clips, GRID)
    assert first["test"] == [["caption 0 of 3"], ["caption 0 of 3"], ["caption 0 of 4"], ["caption 0 of 4"]]
    every = captions_of(data.model_copy(update={"caption_rule": "all"}), clips, GRID)
    assert every["train"][0] == [f"caption {k} of 0" for k in range(3)]
    seeds = [
        captions_of(data.model_copy(update={"caption_rule": "random", "seed": seed}), clips, GRID) for seed in (0, 0, 1)
    ]
    assert seeds[0] == seeds[1] != seeds[2] and all(len(own) == 1 for own in seeds[2]["train"])


def test_a_column_of_captions(tmp_path: Path) -> None:
    data = Data(layout="csv", root=tmp_path)
    clips = {"train": [Clip(Path("a.mp4"), 0, 0)], "test": [Clip(Path("b/c.mp4"), 0, 0)]}
    (tmp_path / "videos.csv").write_text('path,split,caption\na.mp4,train,"a dog, running"\nb/c.mp4,test,a cat\n')
    assert captions_of(data, clips, GRID) == {"train": [["a dog, running"]], "test": [["a cat"]]}
    (tmp_path / "videos.csv").write_text("path,split,caption\na.mp4,train,a dog\nb/c.mp4,test,\n")
    with pytest.raises(DataError, match=r"b/c\.mp4.*has no caption"):
        captions_of(data, clips, GRID)
    (tmp_path / "videos.csv").write_text("path,split\na.mp4,train\nb/c.mp4,test\n")
    with pytest.raises(DataError, match="no column caption"):
        captions_of(data, clips, GRID)
    with pytest.raises(SettingsError, match=r"data\.layout flat has none"):
        captions_of(Data(layout="flat", root=tmp_path), clips, GRID)


@pytest.mark.parametrize("split", ["lists", "time"])
def test_captions_beside_codes(tmp_path: Path, split: str) -> None:
    """A line a clip of the file, whatever clips are drawn from it and wherever it is divided."""
    for name, clips in (("train", 20), ("test", 6)):
        np.save(tmp_path / f"{name}.npy", np.repeat(np.arange(clips)[:, None] % 16, 45, axis=1))
        (tmp_path / f"{name}.captions.txt").write_text("".join(f"clip {n % 16}\n" for n in range(clips)))
    data = {"layout": "tokens", "root": tmp_path, "split": split, "train_clips": 10, "test_fraction": 0.3}
    data |= {"cache_dir": tmp_path / "cache", "clip_frames": 9, "size_px": 12}
    nested = {"data": data, "tokenizer": {"num_codes": 16}, "model": {"width": 16, "depth": 1, "heads": 2}}
    experiment = make_experiment(nested, {"model.condition": "text", "model.text_tokens": 4}, where="test")
    cache = prepare_tokens(experiment)
    captions = cache.captions(experiment.captions_name)
    for part in SPLITS:
        assert captions.texts(part) == [f"clip {code}" for code in cache.tokens(part)[:, 0]]
    assert prepare_tokens(experiment).path == cache.path
    (tmp_path / "train.captions.txt").write_text("another\n" * 20)
    with pytest.raises(DataError, match="have changed since"):
        prepare_tokens(experiment)
    (tmp_path / "train.captions.txt").write_text("one\n")
    with pytest.raises(DataError, match="1 lines for 20 clips"):
        prepare_tokens(experiment)


@pytest.fixture(scope="module")
def told(digits: tuple[Experiment, TokenCache]) -> tuple[Experiment, TokenCache]:
    experiment = changed(digits[0], TEXT)
    return experiment, prepare_tokens(experiment)


def test_captions_of_digits_say_what_is_seen(told: tuple[Experiment, TokenCache]) -> None:
    """The measure of generated clips, on real ones and their own captions."""
    experiment, cache = told
    texts = cache.captions(experiment.captions_name).texts("train")
    assert texts[0].startswith("a ") and len(set(texts)) > 50 and any("stands still" in text for text in texts)
    labels, clips = cache.labels("train"), cache.clips("train")
    moves = motion_signs(torch.from_numpy(np.array(clips))).numpy()
    assert prompt_hits(texts[: len(clips)], labels[: len(clips)], moves) == (1.0, 1.0)
    assert prompt_hits(texts[: len(clips)], (labels[: len(clips)] + 1) % 10, -moves).digit == 0.0
    assert digit_and_motion("a 3 moves left and up") == (3, -1, -1)


def test_the_cache_itself_stays_what_it_is(
    told: tuple[Experiment, TokenCache], digits: tuple[Experiment, TokenCache]
) -> None:
    assert told[1].path == digits[1].path and told[1].fingerprint == digits[1].fingerprint
    captions = told[1].captions(told[0].captions_name)
    known = {"a", "and", "moves", "left", "right", "up", "down", "stands", "still", *map(str, range(10))}
    assert captions.num_words == len(known | {"<unknown>"})
    assert captions.words("train").shape == (400, 6) and captions.shortened == 0
    assert TokenCache.open(told[1].path).captions(told[0].captions_name).fingerprint == captions.fingerprint
    with pytest.raises(DataError, match="reco-tune tokenize"):
        told[1].captions(changed(told[0], {"model.text_tokens": 7}).captions_name)


def test_every_clip_trains_with_its_words(told: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = told
    feed = Feed(build_scheme(changed(experiment, {"training.class_dropout": 0.4}), cache), cache)
    captions, known = cache.captions(experiment.captions_name), {}
    for tokens, words in zip(cache.tokens("train"), captions.words("train"), strict=True):
        known.setdefault(tokens.tobytes(), set()).add(words.tobytes())
    nothing, dropped, seen = captions.encoded([""])[0].tobytes(), 0, 0
    for _ in range(6):
        batch = feed.next().batch
        for tokens, words in zip(batch.tokens_BT.numpy(), batch.labels_B.numpy(), strict=True):
            dropped, seen = dropped + (words.tobytes() == nothing), seen + 1
            assert words.tobytes() == nothing or words.tobytes() in known[tokens.tobytes()]
    assert 0.25 < dropped / seen < 0.55


def test_prompts_are_the_captions_of_the_reference(told: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = told
    held_out = changed(experiment, {"evaluation.reference_split": "test", "evaluation.samples": 200})
    asked = asked_for(held_out, cache)
    texts = cache.captions(experiment.captions_name).texts("test")
    assert asked.prompts_N == (*texts, *texts[:40])
    assert [digit_and_motion(text)[0] for text in asked.prompts_N] == asked.labels_N.tolist()
    assert (asked.given_N[:160] == cache.captions(experiment.captions_name).words("test")).all()


def test_what_is_of_texts_is_refused_for_classes(digits: tuple[Experiment, TokenCache]) -> None:
    for key, value in (("model.text_tokens", 6), ("model.text_tokenizer", "x/y"), ("data.caption_rule", "all")):
        with pytest.raises(SettingsError, match=f"{key} .*model.condition is class"):
            changed(digits[0], {key: value})
    with pytest.raises(SettingsError, match=r"model\.condition is none"):
        changed(digits[0], {"model.condition": "none", "training.class_dropout": 0.1, "sampling.guidance": 2.0})


def test_a_model_without_condition_sees_none(digits: tuple[Experiment, TokenCache]) -> None:
    experiment = changed(digits[0], {"model.condition": "none"})
    scheme = build_scheme(experiment, digits[1])
    assert scheme.model_settings.num_classes == 1 and not Feed(scheme, digits[1]).next().batch.labels_B.any()


def test_a_tokenizer_of_transformers(tmp_path: Path, digits: tuple[Experiment, TokenCache]) -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(["[UNK]", "a", "3", "moves", "left", "up", "and"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path / "own")
    experiment = changed(digits[0], {**TEXT, "model.text_tokenizer": str(tmp_path / "own")})
    captions = prepare_tokens(experiment).captions(experiment.captions_name)
    assert captions.num_words == 7
    assert captions.encoded(["a 3 moves left and up"]).tolist() == [[1, 2, 3, 4, 6, 5]]
    with pytest.raises(SettingsError, match=r"model\.text_tokenizer"):
        prepare_tokens(changed(digits[0], {**TEXT, "model.text_tokenizer": str(tmp_path / "nothing")}))


def test_a_tokenizer_that_has_changed_is_refused(tmp_path: Path, digits: tuple[Experiment, TokenCache]) -> None:
    """The words in the cache are of the earlier one: a model would read others than the folder says."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")

    def save(words: list[str]) -> None:
        known = {word: place for place, word in enumerate(["[UNK]", *words])}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)

    folder = tmp_path / "own"
    experiment = changed(digits[0], {**TEXT, "model.text_tokenizer": str(folder)})
    save(["a", "3", "moves", "left", "up", "and"])
    prepare_tokens(experiment)
    prepare_tokens(experiment)
    save(["a", "3", "moves", "up", "left", "and"])
    with pytest.raises(DataError, match=r"model\.text_tokenizer \(.*own\) has changed since .*captions-"):
        prepare_tokens(experiment)
    shutil.rmtree(folder)
    prepare_tokens(experiment)  # all that is needed lies in the cache


def test_training_follows_the_words(tmp_path: Path, told: tuple[Experiment, TokenCache]) -> None:
    """A few steps on texts, with windows: finite, resumed bit for bit, and counted with the words."""
    small = {"training.steps": 4, "training.rungs": 2, "window.scheme": "window", "window.length_blocks": 2}
    small |= {"window.length_tokens": None, "window.stride_tokens": None, "training.batch_size": 8}
    experiment, cache = changed(told[0], small), told[1]
    whole = fit(experiment, cache, tmp_path / "whole")
    of_classes = plan_scheme(changed(experiment, {"model.condition": "class", "model.text_tokens": 32}))
    assert plan_scheme(experiment).expected_flops() > of_classes.expected_flops()
    assert np.isfinite(whole.metrics["val_cross_entropy"])


def test_words_that_a_list_does_not_know() -> None:
    assert WordList.fit(["a b"]).unknown("a c d") == ["c", "d"]


def test_prompts_make_clips(tmp_path: Path, told: tuple[Experiment, TokenCache]) -> None:
    """A model of texts knows its words wherever it goes, is asked with prompts alone, and is evaluated on captions."""
    small = {"training.steps": 2, "training.rungs": 1, "training.batch_size": 8, "training.class_dropout": 0.2}
    experiment, cache = changed(told[0], {**small, "sampling.guidance": 2.0, "evaluation.samples": 20}), told[1]
    fit(experiment, cache, tmp_path / "run")
    moved = shutil.copytree(tmp_path / "run" / "model", tmp_path / "elsewhere")
    loaded = load_model(moved)
    asked = wanted(loaded, None, ["a 3 moves left", "a 5 flies up"], 3)
    assert asked.names == ("a 3 moves left", "a 5 flies up", "a 3 moves left") and asked.unknown == ("flies",)
    made = generated(loaded, experiment, asked.given_N, 0, quiet)
    assert made.shape == (3, 9, 3, 12, 12)
    for classes, prompts, words in ((["Digit3"], None, "--prompt"), (None, ["flying saucers"], "no word")):
        with pytest.raises(SettingsError, match=words):
            wanted(loaded, classes, prompts, None)
    assert (
        CliRunner().invoke(app, ["generate", str(moved), "--prompt", "a 3 stands still", "--clips", "2"]).exit_code == 0
    )
    with np.load(tmp_path / "elsewhere" / "generated" / "clips.npz") as found:
        assert found["prompts"].tolist() == ["a 3 stands still"] * 2 and len(found["video"]) == 2
