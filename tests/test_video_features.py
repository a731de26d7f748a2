"""Feature extractors: what they learn, that they are reproducible, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation import video_features
from reco_tune.evaluation.feature_networks import NUM_FEATURES, motion_targets, pixels
from reco_tune.evaluation.video_features import fit_extractor, fit_steps, load_extractor

PROTOCOLS = ("native", "native-random", "native-pca")


def moving_bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips of a bright bar: class 0 lies, class 1 stands; half of them move down one pixel a frame."""
    generator = np.random.default_rng(seed)
    video = np.zeros((count, 5, 3, 12, 12), np.uint8)
    labels = np.arange(count) % 2
    for index in range(count):
        row, column = generator.integers(0, 3, 2)
        brightness = generator.integers(150, 255)
        height, width = (2, 6) if labels[index] == 0 else (6, 2)
        for frame in range(5):
            top = row + (frame if (index // 2) % 2 else 0)
            video[index, frame, :, top : top + height, column : column + width] = brightness
    return video, labels.astype(np.int64)


@pytest.fixture(scope="module")
def clips():
    return moving_bars(96, seed=0)


@pytest.fixture(scope="module")
def fitted(clips):
    heldout, heldout_labels = moving_bars(64, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_features, "FIT_STEPS", 60)
        yield {protocol: fit_extractor(protocol, *clips, 2, heldout, heldout_labels) for protocol in PROTOCOLS}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_clips_give_the_same_bits(protocol, fitted, clips):
    again = fit_extractor(protocol, *clips, 2, *moving_bars(64, seed=1))
    assert again.hash == fitted[protocol].hash
    np.testing.assert_array_equal(again.describe(clips[0]).features_BD, fitted[protocol].describe(clips[0]).features_BD)


def test_few_clips_are_fitted_in_few_steps(monkeypatch):
    monkeypatch.setattr(video_features, "FIT_STEPS", 640)
    assert [fit_steps(clips) for clips in (2, 64, 65, 400, 2048, 10**6)] == [60, 60, 120, 420, 640, 640]


def test_the_fit_leaves_global_randomness_and_threads_alone(clips):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fit_extractor("native-random", *clips, 2, *clips)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_features_are_centred_and_of_unit_variance(protocol, fitted, clips):
    features = fitted[protocol].describe(clips[0]).features_BD
    assert features.shape == (96, NUM_FEATURES) and features.dtype == np.float64
    assert features.var(axis=0).mean() == pytest.approx(1, rel=1e-5)
    assert np.abs(features.mean(axis=0)).max() < 1e-3


def test_learns_class_frame_class_and_motion(fitted):
    quality = fitted["native"].quality
    assert quality["class_accuracy"] > 0.9 and quality["frame_accuracy"] > 0.9  # chance is 0.5
    assert quality["motion_r2"] > 0.5  # 0 is as good as the mean
    heldout, labels = moving_bars(64, seed=2)
    described = fitted["native"].describe(heldout)
    assert (described.class_B == labels).mean() > 0.9
    assert described.frame_class_BF.shape == (64, 5)


def test_only_the_trained_one_names_classes(fitted, clips):
    for protocol in ("native-random", "native-pca"):
        described = fitted[protocol].describe(clips[0][:3])
        assert described.class_B is None and described.frame_class_BF is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_saved_and_loaded_is_the_same(protocol, fitted, clips, tmp_path):
    fitted[protocol].save(tmp_path)
    loaded = load_extractor(tmp_path)
    assert (loaded.protocol, loaded.hash, loaded.quality) == (protocol, fitted[protocol].hash, fitted[protocol].quality)
    np.testing.assert_array_equal(
        loaded.describe(clips[0]).features_BD, fitted[protocol].describe(clips[0]).features_BD
    )


def test_changed_weights_are_refused(fitted, tmp_path):
    fitted["native-random"].save(tmp_path)
    path = tmp_path / "extractor.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"hash.*delete that folder"):
        load_extractor(tmp_path)


def test_a_missing_extractor_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="delete that folder"):
        load_extractor(tmp_path)


def test_native_without_classes_names_the_way_out(clips):
    with pytest.raises(SettingsError, match=r"evaluation\.protocol \(native\).*native-random or native-pca"):
        fit_extractor("native", clips[0], np.zeros(96, np.int64), 1, *clips)


@pytest.mark.parametrize("protocol", ["native-random", "native-pca"])
def test_large_clips_are_averaged_down_inside(protocol):
    video = np.random.default_rng(0).integers(0, 256, (6, 17, 3, 64, 64), dtype=np.uint8)
    labels = np.zeros(6, np.int64)
    features = fit_extractor(protocol, video, labels, 1, video[:0], labels[:0]).describe(video).features_BD
    assert features.shape == (6, NUM_FEATURES if protocol == "native-random" else 5)  # 6 clips span 5 components
    assert pixels(video).shape == (6, 3, 17, 32, 32)


def test_principal_components_are_those_of_the_covariance(clips):
    flat = pixels(clips[0]).flatten(1).double().numpy()
    eigenvalues = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)[:8] ** 2
    features = fit_extractor("native-pca", *clips, 2, *clips).describe(clips[0]).features_BD
    found = (features**2).sum(axis=0)[:8]
    np.testing.assert_allclose(found / found[0], eigenvalues / eigenvalues[0], rtol=1e-4)  # float32 projection


def test_motion_targets_know_direction_of_motion_and_rest():
    video, _ = moving_bars(4, seed=0)  # clips 0 and 1 rest, 2 and 3 move down
    targets = motion_targets(pixels(video))
    assert torch.all(targets[:2].abs() < 1e-5)
    assert (
        torch.all(targets[2:, 0] > 0.05) and torch.all(targets[2:, 1].abs() < 1e-3) and torch.all(targets[2:, 2] > 0.05)
    )
