"""Footage that nobody here rendered: mixed sizes, codecs and lengths. Skipped where the clips do not lie beside the
repository.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from reco_tune.data.clips import decode, list_clips
from reco_tune.data.video import count_frames, read_frames
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Data, Evaluation, Experiment, Tokenizer
from reco_tune.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[2] / "shared" / "videos"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="../shared/videos is absent")
FILES = sorted(ROOT.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_any_frame_is_the_frame_of_a_plain_loop(path: Path) -> None:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert count_frames(path) == len(frames) >= 32
    for start in (len(frames) // 2, len(frames) - 5, 7, 0):
        assert np.array_equal(read_frames(path, range(start, start + 5)), frames[start : start + 5])


def test_clips_of_all_videos_and_no_shared_frames() -> None:
    data = Data(root=ROOT, split="time", test_fraction=0.25, clip_frames=17, size_px=64, clip_stride=8)
    clips = list_clips(data)
    assert clips.class_names == (
        "ApplyEyeMakeup",
        "ArmWrestling",
        "Basketball",
        "CleaningPool",
        "DrinkingWater",
        "Hugging",
    )
    assert {clip.label for clip in clips.train} == set(range(6))
    for path in FILES:
        test_starts = [clip.start for clip in clips.test if clip.path == path.relative_to(ROOT)]
        assert not test_starts or max(
            clip.start + 16 for clip in clips.train if clip.path == path.relative_to(ROOT)
        ) < min(test_starts)


def test_from_footage_to_tokens_and_back(tmp_path: Path) -> None:
    """A few training steps already show the picture: nearer to the clip than its mean colour."""
    experiment = Experiment(
        data=Data(
            root=ROOT,
            cache_dir=tmp_path,
            split="time",
            clip_frames=17,
            size_px=64,
            clip_stride=4,
            train_clips=48,
            test_clips=12,
        ),
        tokenizer=Tokenizer(
            kind="vq",
            spatial_stride=8,
            temporal_stride=4,
            num_codes=256,
            width=16,
            fit_steps=60,
            fit_batch_size=4,
            learning_rate=3e-3,
        ),
        evaluation=Evaluation(reference_clips=48, validation_clips=12),
    )
    cache = prepare_tokens(experiment, piece_blocks=(2,))
    assert (
        cache.grid == (5, 8, 8)
        and cache.tokens("train").shape == (48, 320)
        and cache.pieces("test", 2).shape == (12, 4, 128)
    )
    clips = torch.from_numpy(np.array(cache.clips("train")))
    decoded = load_tokenizer(cache.tokenizer_path).decode(
        torch.from_numpy(cache.tokens("train").astype(np.int64)).reshape(-1, *cache.grid)
    )
    error = (decoded.float() - clips).square().mean()
    flat = (clips.float() - clips.float().mean(dim=(1, 3, 4), keepdim=True)).square().mean()
    assert error < 0.8 * flat
    assert len(np.unique(cache.tokens("train"))) > 64


def test_every_frame_decoded_once_is_the_frame_read_alone() -> None:
    data = Data(root=ROOT, split="time", clip_frames=17, size_px=64, clip_stride=40, train_clips=6)
    clips = list_clips(data).train
    for part in decode(clips, data):
        for row, pixels in zip(part.rows, part.video_BFCHW, strict=True):
            alone = next(iter(decode([clips[row]], data))).video_BFCHW[0]
            assert np.array_equal(pixels, alone)
