"""Adapters of pretrained tokenizers, against stand-ins that have the published interfaces: round trips and independence
of the batch first, then what each works around, then what is refused.

The stand-ins cannot tell whether published weights give the pixels that their authors show; `reco-tune tokenize
--check` does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from standin_tokenizers import OMNI_CODES, forget, write_cosmos, write_larp, write_omnitokenizer, write_vidtok
from torch import nn

from reco_tune.errors import DataError, ReCoTuneError, SettingsError
from reco_tune.generation import Request, generate_clips
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Experiment, Tokenizer, make_experiment
from reco_tune.tokenizers import load_tokenizer, open_pretrained
from reco_tune.tokenizers.base import PixelRange
from reco_tune.tokenizers.pretrained import load_checkpoint
from reco_tune.training import fit, load_model

KINDS = ("vidtok", "cosmos", "omnitokenizer", "larp")
GRID_KINDS = KINDS[:3]


@pytest.fixture(autouse=True)
def _own_packages() -> Iterator[None]:
    yield
    forget("OmniTokenizer", "models", "pretend_lightning")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """Settings of a tokenizer whose files are there."""
    made: dict[str, Tokenizer] = {}

    def get(kind: str) -> Tokenizer:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            if kind == "vidtok":
                pytest.importorskip("diffusers")
                made[kind] = Tokenizer(kind="vidtok", path=str(write_vidtok(folder)))
            elif kind == "cosmos":
                made[kind] = Tokenizer(kind="cosmos", path=str(write_cosmos(folder / "DV4x8x8", offset=1)))
            elif kind == "omnitokenizer":
                code, weights = write_omnitokenizer(folder)
                made[kind] = Tokenizer(
                    kind="omnitokenizer", path=str(code), checkpoint=str(weights), num_codes=OMNI_CODES
                )
            else:
                code, hub, _ = write_larp(folder)
                made[kind] = Tokenizer(kind="larp", path=str(code), checkpoint=str(hub), num_codes=30)
        return made[kind]

    return get


def _video(kind: str, number: int = 3, seed: int = 0) -> torch.Tensor:
    """uint8: a colour for every 4 x 8 x 8 tubelet."""
    frames, side = (16, 128) if kind == "larp" else (5, 32)
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(
        0, 256, (number, 2 if frames == 5 else 4, 3, side // 8, side // 8), generator=random, dtype=torch.uint8
    )
    wide = blocks.repeat_interleave(4, 1).repeat_interleave(8, 3).repeat_interleave(8, 4)
    return wide[:, 3:] if frames == 5 else wide


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_range(given: Callable[[str], Tokenizer], kind: str) -> None:
    values = given(kind)
    tokenizer, video = open_pretrained(values), _video(kind)
    codes = tokenizer.encode(video)
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < tokenizer.num_codes == values.num_codes
    assert tuple(codes.shape[1:]) == values.grid(video.shape[1], video.shape[3])
    decoded = tokenizer.decode(codes)
    assert (decoded.shape, decoded.dtype) == (video.shape, torch.uint8)
    assert tokenizer.decode(torch.randint(values.num_codes, codes.shape)).shape == video.shape, (
        "a model may sample any code anywhere"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_codes_do_not_depend_on_the_batch(given: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer, video = open_pretrained(given(kind)), _video(kind)
    codes = tokenizer.encode(video)
    assert torch.equal(torch.cat([tokenizer.encode(clip[None]) for clip in video]), codes)
    assert torch.equal(tokenizer.encode(video), codes), "nothing is drawn"


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_no_code_depends_on_later_frames(given: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer, video = open_pretrained(given(kind)), torch.cat([_video(kind), _video(kind, seed=1)[:, 1:]], dim=1)
    codes = tokenizer.encode(video)
    assert codes.shape[1] == 3
    assert torch.equal(tokenizer.encode(video[:, :1]), codes[:, :1]), "the first frame alone"
    changed = video.clone()
    changed[:, 5:] = 255 - changed[:, 5:]
    assert torch.equal(tokenizer.encode(changed)[:, :2], codes[:, :2])
    assert not torch.equal(tokenizer.encode(changed), codes)
    with pytest.raises(ValueError, match="frames are not 1 more than a multiple"):
        tokenizer.encode(video[:, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same_without_the_files_it_came_from(
    given: Callable[[str], Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer, video = open_pretrained(given(kind)), _video(kind)
    path = tmp_path / "cache" / "tokenizers" / "t"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert loaded.fingerprint == tokenizer.fingerprint == open_pretrained(given(kind)).fingerprint
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))
    assert loaded.pixels == tokenizer.pixels == PixelRange(*json.loads((path / "tokenizer.json").read_text())["pixels"])
    assert not [
        name
        for name in load_file(path / "tokenizer.safetensors")
        if name.startswith(("prior_model", "perceptual_model"))
    ]


@pytest.mark.parametrize("kind", ["cosmos", "omnitokenizer", "larp"])
def test_colours_come_back_in_the_range_that_the_network_was_trained_on(
    given: Callable[[str], Tokenizer], kind: str
) -> None:
    """A codebook's own colours are exact; in another range of pixels they would be others."""
    tokenizer = open_pretrained(given(kind))
    anything = torch.randint(
        tokenizer.num_codes, tokenizer.encode(_video(kind)).shape, generator=torch.Generator().manual_seed(0)
    )
    if kind == "cosmos":
        anything = anything % 512 + 512 * 2 + 2560 * 2 + 12800 * 2  # the channels that the stand-in reads
    assert torch.equal(tokenizer.encode(tokenizer.decode(anything)), anything)
    low, high = {"cosmos": (-1, 1), "omnitokenizer": (-0.5, 0.5), "larp": (0, 1)}[kind]
    assert tokenizer.pixels == (low, high)


def test_a_pixel_range_gives_every_byte_back() -> None:
    for pixels in (PixelRange(-1, 1), PixelRange(-0.5, 0.5), PixelRange(0, 1)):
        every = torch.arange(256, dtype=torch.uint8)
        floats = pixels.to_float(every)
        assert (floats[0], floats[-1]) == pytest.approx((pixels.low, pixels.high)) and torch.equal(
            pixels.to_uint8(floats), every
        )
        assert pixels.to_uint8(torch.tensor([pixels.low - 1, pixels.high + 1])).tolist() == [0, 255]


@pytest.mark.parametrize("offset", [0, 1])
def test_cosmos_counts_from_0_whatever_its_files_count_from(tmp_path: Path, offset: int) -> None:
    """The README numbers codes 1..64,000, the published quantizer 0..63,999; a code one too high is another colour."""
    tokenizer = open_pretrained(Tokenizer(kind="cosmos", path=str(write_cosmos(tmp_path / "c", offset=offset))))
    black = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8)
    assert tokenizer.encode(black).unique().tolist() == [512 * 2 + 2560 * 2 + 12800 * 2]
    assert torch.equal(tokenizer.decode(tokenizer.encode(black)), black)


class _Continuous(nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video[:, :, :, ::8, ::8]


class _Misnumbered(nn.Module):
    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = video[:, :1, :, ::8, ::8]
        return torch.zeros_like(small[:, 0]).to(torch.int32) + 7, torch.zeros_like(small).repeat(1, 6, 1, 1, 1)


def _cosmos(tmp_path: Path, damage: Callable[[Path], object] = lambda path: None, **written: object) -> Tokenizer:
    path = write_cosmos(tmp_path / "c", **written)  # type: ignore[arg-type]
    damage(path)
    return Tokenizer(kind="cosmos", path=str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: Tokenizer(kind="cosmos"),
            "needs tokenizer.path: the folder that holds encoder.jit and decoder.jit",
        ),
        (lambda path: _cosmos(path, lambda c: (c / "decoder.jit").unlink()), "has no decoder.jit"),
        (lambda path: _cosmos(path, lambda c: (c / "encoder.jit").write_bytes(b"PK no")), "not a TorchScript program"),
        (lambda path: _cosmos(path, encoder=_Continuous()), "continuous tokenizer"),
        (lambda path: _cosmos(path, encoder=_Misnumbered()), "differ from its own codes"),
        (lambda path: Tokenizer(kind="omnitokenizer"), "needs tokenizer.path: the folder of the authors' repository"),
        (lambda path: Tokenizer(kind="omnitokenizer", path=str(path)), "needs tokenizer.checkpoint"),
        (
            lambda path: Tokenizer(kind="omnitokenizer", path=str(path), checkpoint=str(path / "no.ckpt")),
            "is not a file",
        ),
        (lambda path: _omni(path, use_vae=True), "is the continuous VAE, .*use the VQVAE"),
        (
            lambda path: _omni(path).model_copy(update={"path": str(path)}),
            "does not have OmniTokenizer/omnitokenizer.py",
        ),
        (
            lambda path: _omni(path, num_codes=50),
            r"tokenizer.num_codes \(50\) does not match the weights, which have 40",
        ),
        (
            lambda path: _omni(path, patch_size=16),
            r"tokenizer.spatial_stride \(8\) does not match the weights, which have 16",
        ),
        (lambda path: _omni(path, state={"scale": torch.ones(3)}), "1 weights are missing"),
        (lambda path: _omni(path, state=None), "is not an OmniTokenizer checkpoint"),
        (lambda path: Tokenizer(kind="larp", path=str(path)), "needs tokenizer.checkpoint"),
        (
            lambda path: Tokenizer(kind="larp", path=str(path), checkpoint="nowhere"),
            "does not exist as a file or folder, and is not a model name",
        ),
        (lambda path: _larp(path, frame_num=8), "give 1024 codes for 8 frames"),
        (lambda path: _larp(path, drop="config.json"), "has no LARP weights"),
        (lambda path: Tokenizer(kind="vidtok"), "needs tokenizer.path"),
        (
            lambda path: Tokenizer(kind="vidtok", path="microsoft/vidtok_fsq_causal_488_32768"),
            "v1.0 weights .* give wrong codes",
        ),
        (lambda path: Tokenizer(kind="vidtok", path=str(path)), "does not have v1_1 in its name"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, make: Callable[[Path], Tokenizer], message: str) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(ReCoTuneError, match=message) as error:
        open_pretrained(make(folder))
    assert "\n" not in str(error.value)


def _omni(path: Path, num_codes: int = OMNI_CODES, state: object = "whole", **changes: object) -> Tokenizer:
    code, checkpoint = write_omnitokenizer(path / "o", **changes)
    if state != "whole":
        saved = load_checkpoint(checkpoint, [__import__("argparse").Namespace])
        torch.save({**saved, "state_dict": state} if state else {"weights": 1}, checkpoint)
    return Tokenizer(kind="omnitokenizer", path=str(code), checkpoint=str(checkpoint), num_codes=num_codes)


def _larp(path: Path, drop: str | None = None, **changes: object) -> Tokenizer:
    code, hub, _ = write_larp(path / "l")
    (hub / "config.json").write_text(json.dumps({**json.loads((hub / "config.json").read_text()), **changes}))
    if drop:
        (hub / drop).unlink()
    return Tokenizer(kind="larp", path=str(code), checkpoint=str(hub), num_codes=30)


def test_larp_reads_a_training_checkpoint_as_it_reads_a_hub_folder(tmp_path: Path) -> None:
    code, hub, checkpoint = write_larp(tmp_path)
    of_hub, of_training = (
        open_pretrained(Tokenizer(kind="larp", path=str(code), checkpoint=str(given), num_codes=30))
        for given in (hub, checkpoint)
    )
    assert of_hub.fingerprint == of_training.fingerprint


@pytest.mark.parametrize(
    ("kind", "blocked"), [("vidtok", "diffusers"), ("omnitokenizer", "pretend_lightning"), ("larp", "huggingface_hub")]
)
def test_a_missing_package_is_one_sentence_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, blocked: str
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    if kind == "omnitokenizer":
        values = _omni(tmp_path)
    else:
        values = Tokenizer(
            kind=kind,
            path=str(tmp_path) if kind == "larp" else "a/VidTok-v1.1",
            checkpoint="a/b" if kind == "larp" else None,
        )
    with pytest.raises(SettingsError, match=rf"needs the package {blocked}.*pip install 'reco-tune\[{kind}\]'"):
        open_pretrained(values)


def test_code_that_fails_when_it_is_imported_is_one_sentence(tmp_path: Path) -> None:
    """A torchvision of another build of torch says `operator torchvision::nms does not exist`."""
    values = _omni(tmp_path)
    (tmp_path / "o" / "repository" / "pretend_lightning.py").write_text(
        "raise RuntimeError('operator torchvision::nms\\ndoes not exist')\n"
    )
    with pytest.raises(
        SettingsError, match=r"cannot be imported \(RuntimeError: operator torchvision::nms does not exist\)"
    ):
        open_pretrained(values)


def test_every_extra_that_a_sentence_names_exists() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"vidtok", "omnitokenizer", "larp"} <= set(project["optional-dependencies"])


@pytest.mark.parametrize(("kind", "num_codes"), [("vidtok", 32768), ("cosmos", 64000), ("omnitokenizer", 8192)])
def test_the_papers_clip_has_5120_tokens(kind: str, num_codes: int) -> None:
    experiment = make_experiment({"tokenizer": {"kind": kind}}, {}, where="here")
    assert (experiment.grid, experiment.tokenizer.num_codes) == ((5, 32, 32), num_codes)


def _holistic(**overrides: object) -> Experiment:
    nested = {
        "data": {"layout": "digits", "clip_frames": 16, "size_px": 128},
        "tokenizer": {"kind": "larp"},
        "window": {"length_tokens": 256},
        "evaluation": {"analyses": False},
    }
    return make_experiment(nested, overrides, where="here")


def test_holistic_codes_are_one_block_of_1024_with_windows_in_tokens() -> None:
    experiment = _holistic()
    assert (experiment.grid, experiment.window.length_tokens, experiment.window.stride_tokens) == (
        (1, 1, 1024),
        256,
        128,
    )
    assert _holistic(**{"window.scheme": "full", "window.length_tokens": None}).window.length_tokens == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.clip_frames": 17}, r"data.clip_frames \(17\) and data.size_px \(128\) must be 16 and 128"),
        ({"window.scheme": "fewer_frames"}, r"window.scheme \(fewer_frames\) cuts clips at frames"),
        ({"window.scheme": "fewer_frames_tokens"}, "cuts clips at frames"),
        ({"window.length_blocks": 2}, "window.length_tokens is missing"),
        ({"window.length_tokens": None}, "window.length_tokens is missing"),
        ({"objective.continuity_neighbours": "sites"}, r"objective.continuity_neighbours \(sites\) compares frames"),
        ({"evaluation.analyses": True}, "set evaluation.analyses=false"),
        (
            {"tokenizer.kind": "kmeans", "tokenizer.path": "x"},
            r"tokenizer.path \(x\) has no meaning if tokenizer.kind is kmeans",
        ),
        (
            {"tokenizer.kind": "cosmos", "tokenizer.checkpoint": "x"},
            r"tokenizer.checkpoint \(x\) has no meaning .* cosmos",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_speaks_of_frames_is_refused_where_codes_have_none(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _holistic(**changes)


def _digits(cache_dir: Path, tokenizer: dict[str, object]) -> Experiment:
    nested = {
        "data": {
            "layout": "digits",
            "cache_dir": cache_dir,
            "clip_frames": 9,
            "size_px": 16,
            "train_clips": 12,
            "test_clips": 6,
        },
        "tokenizer": tokenizer,
        "evaluation": {"reference_clips": 6, "validation_clips": 4},
    }
    return make_experiment(nested, {}, where="here")


def test_a_cache_goes_on_working_without_the_weights_and_refuses_others_in_their_place(tmp_path: Path) -> None:
    weights = write_cosmos(tmp_path / "weights")
    experiment = _digits(tmp_path / "cache", {"kind": "cosmos", "path": str(weights)})
    cache = prepare_tokens(experiment, piece_blocks=(2,))
    tokenizer = load_tokenizer(cache.tokenizer_path)
    assert cache.tokenizer_fingerprint == tokenizer.fingerprint and cache.num_codes == 64000
    pixels = torch.from_numpy(np.array(cache.clips("train")))
    assert np.array_equal(cache.tokens("train")[: len(pixels)].reshape(-1, *cache.grid), tokenizer.encode(pixels))
    later = (weights / "encoder.jit").stat().st_mtime + 100
    os.utime(weights / "encoder.jit", (later, later))
    with pytest.raises(DataError, match="is newer than its copy"):
        prepare_tokens(experiment)
    shutil.rmtree(weights)
    assert prepare_tokens(experiment).path == cache.path


def test_weights_that_are_missing_are_told_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telling 96 GB of frames apart takes minutes."""
    monkeypatch.setattr("reco_tune.preparation.prepare.data_fingerprint", lambda *_: pytest.fail("the data are read"))
    with pytest.raises(SettingsError, match=r"cosmos needs tokenizer\.path"):
        prepare_tokens(_digits(tmp_path / "cache", {"kind": "cosmos"}))


def test_a_model_of_holistic_codes_is_trained_on_windows_and_its_clips_are_decoded(
    given: Callable[[str], Tokenizer], tmp_path: Path
) -> None:
    changes = {
        "data.cache_dir": tmp_path / "cache",
        "data.train_clips": 6,
        "data.test_clips": 3,
        "tokenizer": given("larp").model_dump(),
        "model": {"width": 16, "depth": 2, "heads": 2},
        "training": {"steps": 2, "batch_size": 2, "rungs": 1},
        "evaluation.reference_clips": 4,
        "evaluation.validation_clips": 2,
    }
    experiment = _holistic(**changes)
    cache = prepare_tokens(experiment)
    assert cache.tokens("train").shape == np.load(cache.path / "train.tokens.npy").shape == (
        6,
        1024,
    ) and cache.grid == (1, 1, 1024)
    result = fit(experiment, cache, tmp_path / "run")
    assert result.steps == 2 and np.isfinite(result.metrics["val_cross_entropy"])
    model = load_model(tmp_path / "run").model
    (clips,) = generate_clips(
        model, experiment, load_tokenizer(cache.tokenizer_path), cache.grid, [Request(torch.tensor([0, 1]), 0)]
    )
    assert clips.video_BFCHW.shape == (2, 16, 3, 128, 128)


@pytest.mark.parametrize("kind", ["omnitokenizer", "larp"])
def test_code_is_run_from_where_this_machines_user_put_it_alone(
    given: Callable[[str], Tokenizer], kind: str, tmp_path: Path
) -> None:
    """A cache that somebody sends must not bring code along, nor name some beside itself."""
    path = tmp_path / "cache" / "tokenizers" / "t"
    open_pretrained(given(kind)).save(path)
    text = json.loads((path / "tokenizer.json").read_text())
    evil = tmp_path / "cache" / "code"
    shutil.copytree(text["code"], evil)
    for code in (str(evil), "../../code", str(path / ".." / ".." / "code")):
        (path / "tokenizer.json").write_text(json.dumps({**text, "code": code}))
        with pytest.raises(DataError, match="which is not allowed to run"):
            load_tokenizer(path)
    (path / "tokenizer.json").write_text(json.dumps({**text, "code": str(tmp_path / "moved")}))
    with pytest.raises(DataError, match=r"no longer at .*moved; restore it"):
        load_tokenizer(path)
