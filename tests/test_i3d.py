"""Published protocols: what each shows the network, whose file it is, what a number made with it carries, and what is
refused.

The network is a scripted stand-in of I3D's own signature, forward(x, rescale, resize, return_features): the real file
is a person's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation import evaluate, prepare_evaluation, video_features
from reco_tune.evaluation.frechet import FeatureStatistics, frechet_interval
from reco_tune.evaluation.i3d import i3d_pixels, load_i3d
from reco_tune.evaluation.protocols import deviations
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Experiment, make_experiment
from reco_tune.settings.protocols import I3D_SHA256, PUBLISHED
from reco_tune.training import build_scheme


class StandIn(nn.Module):
    """I3D's signature, range and size with one layer of random weights on coarse pixels."""

    def __init__(self, features: int = 400) -> None:
        super().__init__()
        self.layer = nn.Conv3d(3, features, 2)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if resize:
            batch, channels, frames = x.shape[:3]
            flat = F.interpolate(x.transpose(1, 2).flatten(0, 1), size=(224, 224), mode="bilinear", align_corners=False)
            x = flat.view(batch, frames, channels, 224, 224).transpose(1, 2)
        if rescale:
            x = x / 255 * 2 - 1
        logits = self.layer(F.avg_pool3d(x, [4, 32, 32])).relu().mean(dim=[2, 3, 4])
        return logits if return_features else logits.softmax(dim=1)


class Foreign(nn.Module):
    """Another network, which knows no such arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def script(network: nn.Module, path: Path) -> str:
    """Saves a scripted network; returns its hash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    torch.manual_seed(0)
    return path, script(StandIn(), path)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 17, 3, 12, 12), dtype=np.uint8)


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_shows_what_the_protocol_says(protocol: str, clips: np.ndarray) -> None:
    published = PUBLISHED[protocol]
    shown = i3d_pixels(clips, published)
    side = 12 if published.resize else 224
    assert shown.shape == (10, 3, published.frames, side, side) and shown.dtype == torch.float32
    if published.resize:  # the first frames, as they are
        np.testing.assert_array_equal(
            shown[:, :, 3].numpy(), clips[:, 3] if published.rescale else clips[:, 3] / np.float32(127.5) - 1
        )
    low, high = (0, 255) if published.rescale else (-1, 1)
    assert low <= shown.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < shown.max() <= high


def test_the_way_pixels_are_handed_over_does_not_change_what_the_network_sees(
    clips: np.ndarray, stand_in: tuple[Path, str]
) -> None:
    """0..255 rescaled inside, [-1, 1] given, and resized before are one thing for a network that does the same sums."""
    features = {
        name: load_i3d(*stand_in, name, published._replace(frames=16)).describe(clips).features_BD
        for name, published in PUBLISHED.items()
    }
    for found in features.values():
        assert found.shape == (10, 400) and found.dtype == np.float64
        np.testing.assert_allclose(found, features["stylegan-v"], atol=1e-5)  # float32


def test_batches_of_clips_do_not_change_features(clips: np.ndarray, stand_in: tuple[Path, str]) -> None:
    network = load_i3d(*stand_in, "larp", PUBLISHED["larp"])
    whole = network.describe(torch.from_numpy(clips)).features_BD
    np.testing.assert_allclose(
        np.concatenate([network.describe(clips[:3]).features_BD, network.describe(clips[3:]).features_BD]), whole
    )
    assert network.describe(clips[:0]).features_BD.shape == (0, 400)


def test_the_fuser_is_off_inside_and_as_it_was_outside(
    clips: np.ndarray, stand_in: tuple[Path, str], monkeypatch: Any
) -> None:
    seen: list[Any] = []
    original = torch.jit.set_fusion_strategy
    monkeypatch.setattr(
        torch.jit, "set_fusion_strategy", lambda strategy: [seen.append(strategy), original(strategy)][1]
    )
    load_i3d(*stand_in, "latte", PUBLISHED["latte"]).describe(clips)
    assert seen[::2] == [[("STATIC", 0), ("DYNAMIC", 0)]] * 2
    assert seen[1] == seen[3] != seen[0]


def test_the_file_must_be_the_one_that_everybody_has(stand_in: tuple[Path, str]) -> None:
    path, found = stand_in
    with pytest.raises(
        DataError, match=rf"has the sha256 {found}, not {I3D_SHA256}.*set evaluation\.extractor_sha256 to {found}"
    ):
        load_i3d(path, I3D_SHA256, "latte", PUBLISHED["latte"])


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.pt\) cannot be read .*docs/reference/fvd-protocols\.md") as caught:
        load_i3d(tmp_path / "nowhere.pt", I3D_SHA256, "latte", PUBLISHED["latte"])
    assert "\n" not in str(caught.value)


def test_other_files_are_one_sentence(tmp_path: Path, clips: np.ndarray) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no network")
    with pytest.raises(DataError, match="is not a TorchScript network"):
        load_i3d(text, hashlib.sha256(text.read_bytes()).hexdigest(), "latte", PUBLISHED["latte"])
    foreign = tmp_path / "foreign.pt"
    with pytest.raises(DataError, match="does not take rescale, resize, return_features"):
        load_i3d(foreign, script(Foreign(), foreign), "latte", PUBLISHED["latte"])
    small = tmp_path / "small.pt"
    network = load_i3d(small, script(StandIn(5), small), "latte", PUBLISHED["latte"])
    with pytest.raises(DataError, match=r"gave \[8, 5\] where I3D gives \[clips, 400\]"):
        network.describe(clips)


# --- in a whole evaluation ---


@pytest.fixture(scope="module")
def long_digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], TokenCache]]:
    """60 training and 30 held-out digits of 17 frames, with a hastily fitted classifier: settings and token cache."""
    folder = tmp_path_factory.mktemp("long")
    nested: dict[str, Any] = {
        "data": {
            "layout": "digits",
            "cache_dir": str(folder),
            "clip_frames": 17,
            "size_px": 12,
            "train_clips": 60,
            "test_clips": 30,
        },
        "tokenizer": {"num_codes": 32, "first_frame_codes": 12, "temporal_stride": 4},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "window": {"scheme": "full"},
        "evaluation": {"validation_clips": 8, "analyses": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_features, "FIT_STEPS", 20)
        cache = prepare_tokens(make_experiment(nested, {}, where="test"))
        yield nested, cache


def judged_by(nested: dict[str, Any], protocol: str, stand_in: tuple[Path, str], **changes: object) -> Experiment:
    path, found = stand_in
    given = {
        "protocol": protocol,
        "extractor_path": str(path),
        "extractor_sha256": found,
        "samples": 12,
        "reference_clips": 20,
    }
    return make_experiment(
        nested, {f"evaluation.{key}": value for key, value in (given | changes).items()}, where="test"
    )


@pytest.mark.parametrize("protocol", ["larp", "omnitokenizer"])
def test_a_number_carries_its_protocol(
    protocol: str, long_digits: tuple[dict[str, Any], TokenCache], stand_in: tuple[Path, str]
) -> None:
    nested, cache = long_digits
    experiment = judged_by(nested, protocol, stand_in)
    found = evaluate(build_scheme(experiment, cache).build_model(), experiment, cache)
    published, provenance = PUBLISHED[protocol], found.provenance
    assert provenance["protocol"] == f"{protocol}*/{published.frames}x12x12/stride1/raw/train20/n12x1/{stand_in[1][:8]}"
    assert provenance["extractor"] == stand_in[1] and provenance["covariance_divisor"] == published.divisor
    assert provenance["rank_deficient"] is True  # 12 clips and 400 features
    assert 0 <= found.metrics["fvd_low"] <= found.metrics["fvd"] <= found.metrics["fvd_high"]
    assert (
        0 <= found.metrics["class_accuracy"] <= 1 and len(found.curves["frame_accuracy"]) == 17
    )  # of the native classifier
    assert json.loads(json.dumps(provenance)) == provenance
    told = " ".join(provenance["protocol_deviations"])
    assert f"evaluation.samples 12 instead of {published.samples}" in told and "extractor_sha256" in told
    assert ("data.resize crop instead of stretch" in told) == (protocol == "omnitokenizer")


def test_the_divisor_is_the_protocols_own(
    long_digits: tuple[dict[str, Any], TokenCache], stand_in: tuple[Path, str]
) -> None:
    nested, cache = long_digits
    prepared = {
        name: prepare_evaluation(judged_by(nested, name, stand_in), cache) for name in ("stylegan-v", "omnitokenizer")
    }
    for name, found in prepared.items():
        features = found.features_MD
        assert found.statistics.divisor == PUBLISHED[name].divisor
        np.testing.assert_allclose(
            found.statistics.covariance, np.cov(features, rowvar=False, bias=PUBLISHED[name].divisor == "n"), atol=1e-12
        )
        interval = frechet_interval(features[:12], found.statistics)
        assert (
            interval.value
            != frechet_interval(
                features[:12], FeatureStatistics.of(features, "n" if name == "omnitokenizer" else "n-1")
            )[0]
        )


def test_reference_statistics_are_kept_by_everything_that_changes_them(
    long_digits: tuple[dict[str, Any], TokenCache], stand_in: tuple[Path, str], tmp_path: Path
) -> None:
    nested, cache = long_digits
    folder = cache.path.parents[1] / "references"

    def kept(*arguments: Any, **changes: object) -> tuple[int, np.ndarray]:
        before = set(folder.iterdir()) if folder.exists() else set()
        features = prepare_evaluation(judged_by(nested, *arguments, **changes), cache).features_MD
        return len(set(folder.iterdir()) - before), features

    other = tmp_path / "other.pt"
    torch.manual_seed(1)
    variants: list[tuple[tuple[Any, ...], dict[str, object]]] = [
        (("latte", stand_in), {}),
        (("larp", stand_in), {"reference_clips": 19}),
        (("larp", (other, script(StandIn(), other))), {"reference_clips": 19}),
        (("latte", stand_in), {"reference": "reconstructed"}),
        (("latte", stand_in), {"reference_split": "test", "reference_clips": 18}),
    ]
    for arguments, changes in variants:
        assert kept(*arguments, **changes)[0] == 1, (arguments, changes)
        made, features = kept(*arguments, **changes)
        assert made == 0 and np.isfinite(features).all()


def test_judging_by_a_published_protocol_takes_its_knobs_and_names_what_departs(tmp_path: Path) -> None:
    nested = {
        "data": {"clip_frames": 17},
        "evaluation": {"samples": 64, "reference": "reconstructed", "extractor_path": "i3d.pt"},
    }
    native = make_experiment(nested, {}, where="test").evaluation
    assert (native.samples, native.reference, native.reference_clips) == (64, "reconstructed", 2048)
    judged = make_experiment(nested, {"evaluation.protocol": "larp"}, where="test").evaluation
    assert (judged.samples, judged.reference, judged.reference_clips, judged.reference_split) == (
        10000,
        "raw",
        10000,
        "train",
    )
    chosen = make_experiment(nested, {"evaluation.protocol": "larp", "evaluation.samples": 64}, where="test").evaluation
    assert (chosen.samples, chosen.reference) == (64, "raw")
    written = {"data": nested["data"], "evaluation": judged.model_dump(mode="json")}
    assert make_experiment(written, {}, where="test").evaluation == judged


@pytest.mark.parametrize(
    ("protocol", "layout", "stride", "told"),
    [
        ("latte", "faceforensics", 3, []),
        ("latte", "taichi", 6, []),
        ("latte", "faceforensics", 6, ["data.frame_stride 6 instead of 3 with data.layout faceforensics"]),
        ("latte", "taichi", 3, ["data.frame_stride 3 instead of 6 with data.layout taichi"]),
        ("latte", "ucf101", 1, ["data.frame_stride 1 instead of 3 with data.layout ucf101"]),
        ("stylegan-v", "taichi", 1, []),
        ("stylegan-v", "taichi", 6, ["data.frame_stride 6 instead of 1"]),
        ("native", "taichi", 5, []),
    ],
)
def test_a_protocol_followed_to_the_letter_has_no_star(
    protocol: str, layout: str, stride: int, told: list[str]
) -> None:
    given = {
        "data": {"layout": layout, "frame_stride": stride},
        "evaluation": {"protocol": protocol, "extractor_path": "i3d.pt"},
    }
    assert deviations(make_experiment(given, {}, where="test")) == told


REFUSED = {
    "no file": (
        {"evaluation.protocol": "latte"},
        r"evaluation\.protocol \(latte\) needs I3D: set evaluation\.extractor_path",
    ),
    "short clips": (
        {"evaluation.protocol": "larp", "evaluation.extractor_path": "i3d.pt", "data.clip_frames": 9},
        r"over 16 frames, but data\.clip_frames is 9",
    ),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_at_the_door(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_experiment({}, given, where="test")


def test_where_the_file_lies_does_not_change_what_a_run_is() -> None:
    def made(**changes: object) -> str:
        given = {"evaluation.protocol": "latte", **{f"evaluation.{key}": value for key, value in changes.items()}}
        return make_experiment({}, given, where="test").result_hash()

    assert (
        made(extractor_path="a.pt")
        == made(extractor_path="b.pt")
        != made(extractor_path="a.pt", extractor_sha256="0" * 64)
    )


def test_a_loaded_network_is_frozen(stand_in: tuple[Path, str]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_i3d(*stand_in, "latte", PUBLISHED["latte"]).hash = ""  # type: ignore[misc]
