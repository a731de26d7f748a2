"""Motion distance: it sees damage over time that FVD does not, and is not taken in by a little noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reco_tune.data.token_cache import TokenCache
from reco_tune.data.video import count_frames, read_frames
from reco_tune.evaluation.frechet import frechet_distance
from reco_tune.evaluation.motion import motion_distance, motion_features
from reco_tune.evaluation.video_features import fit_extractor
from reco_tune.settings import Experiment

FOOTAGE = Path(__file__).resolve().parents[2] / "shared" / "videos"


def shuffled(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.stack([clip[random.permutation(len(clip))] for clip in video])


def frozen(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Nothing moves in the second half."""
    half = video.shape[1] // 2
    return np.concatenate(
        [video[:, :half], np.repeat(video[:, half : half + 1], video.shape[1] - half, axis=1)], axis=1
    )


def jittered(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Every frame is displaced by itself, by up to a 24th of the side."""
    reach = max(1, video.shape[-1] // 24)
    return np.stack(
        [[np.roll(frame, random.integers(-reach, reach + 1, 2), (1, 2)) for frame in clip] for clip in video]
    )


def slowed(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return video[:, np.arange(video.shape[1]) // 2]


def noisy(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mild: 8 of 255 grey levels, new in every frame."""
    return np.clip(video + random.normal(0, 8, video.shape), 0, 255).astype(np.uint8)


def speckled(video: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mild: 16 of 255 grey levels, the same in every frame."""
    return np.clip(video + random.normal(0, 16, video[:, :1].shape), 0, 255).astype(np.uint8)


TEMPORAL: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (shuffled, frozen, jittered, slowed)
SPATIAL = (noisy, speckled)


@pytest.fixture(scope="module")
def footage() -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the overlapping 17-frame clips of real videos, 64x64 pixels, in a fixed random order."""
    if not FOOTAGE.is_dir():
        pytest.skip("../shared/videos is absent")
    clips = []
    for path in sorted(path for path in FOOTAGE.glob("*/*") if path.suffix in (".avi", ".mp4")):
        if read_frames(path, [0]).shape[1] > 400:
            continue  # high definition takes seconds to decode
        frames = read_frames(path, list(range(min(count_frames(path), 140))))[:, :192, :192]
        small = frames.reshape(len(frames), 64, 3, 64, 3, 3).mean(axis=(2, 4)).astype(np.uint8)
        clips += [small[start : start + 17].transpose(0, 3, 1, 2) for start in range(0, len(small) - 16, 3)]
    video = np.stack(clips)[np.random.default_rng(0).permutation(len(clips))]
    return video[::2], video[1::2]


@pytest.mark.parametrize("damage", TEMPORAL, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["digits", "footage"])
def test_temporal_damage_moves_it_far_more_than_mild_spatial_noise(
    kind: str, damage: Callable, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(kind)
    video, real = found if kind == "footage" else (np.array(found[1].clips("test")), np.array(found[1].clips("train")))
    reference = motion_features(real)
    random = np.random.default_rng(0)
    mild = max(motion_distance(motion_features(noise(video, random)), reference) for noise in SPATIAL)
    assert motion_distance(motion_features(damage(video, random)), reference) > 3 * mild


def test_features_of_fvd_hardly_see_what_it_sees(footage: tuple[np.ndarray, np.ndarray]) -> None:
    """The story of this measure: shuffling the frames of real clips leaves the Fréchet distance of a random 3D CNN
    about where it was.
    """
    video, real = footage
    labels = np.zeros(len(real), np.int64)
    extractor = fit_extractor("native-random", real, labels, 1, real[:0], labels[:0])
    damaged = shuffled(video, np.random.default_rng(0))
    reference = extractor.describe(real).features_BD
    clean, hurt = (frechet_distance(extractor.describe(clips).features_BD, reference) for clips in (video, damaged))
    assert hurt < 1.5 * clean
    clean, hurt = (motion_distance(motion_features(clips), motion_features(real)) for clips in (video, damaged))
    assert hurt > 20 * clean


def test_identical_clips_have_no_distance(digits: tuple[Experiment, TokenCache]) -> None:
    features = motion_features(digits[1].clips("test"))
    assert motion_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_still_clips_have_no_features_and_no_division_by_zero() -> None:
    still = np.repeat(np.random.default_rng(0).integers(0, 256, (6, 1, 3, 12, 12), dtype=np.uint8), 9, axis=1)
    features = motion_features(still)
    assert np.all(features == 0) and motion_distance(features, features) == 0


def test_change_by_hand() -> None:
    """Every pixel jumps from 0 to 255 at frame 2: one change of 1 among 3 at lag 1, two among 2 at lag 2."""
    video = np.zeros((1, 4, 3, 8, 8), np.uint8)
    video[:, 2:] = 255
    features = motion_features(video)[0]
    lag1, lag2 = features[:7], features[7:14]
    np.testing.assert_allclose(lag1, [np.sqrt(1 / 3)] * 4 + [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(lag2[:4], 1, atol=1e-6)


@pytest.mark.parametrize("frames", [2, 3, 5], ids=lambda frames: f"{frames} frames")
def test_short_clips_leave_long_lags_out(frames: int) -> None:
    video = np.random.default_rng(0).integers(0, 256, (3, frames, 3, 12, 12), dtype=np.uint8)
    signals = {2: 1, 3: 3, 5: 4}[frames]  # lag 1; lags 1, 2 and acceleration; all
    assert motion_features(video).shape == (3, 7 * signals)
