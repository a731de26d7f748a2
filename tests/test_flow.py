"""Optical-flow consistency: motion explains itself, flicker and disorder do not, and the library may be absent."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from reco_tune.errors import SettingsError
from reco_tune.evaluation import flow

needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="the `flow` extra is not installed"
)


def textures(count: int, size: int, random: np.random.Generator) -> torch.Tensor:
    """Smooth random pictures [N, size, size] in 0..1."""
    rough = torch.from_numpy(random.random((count, 1, size // 6, size // 6)))
    return torch.nn.functional.interpolate(rough, (size, size), mode="bicubic")[:, 0].clamp(0, 1)


def clips(frames_BFHW: torch.Tensor) -> np.ndarray:
    return (255 * frames_BFHW).round().to(torch.uint8)[:, :, None].expand(-1, -1, 3, -1, -1).numpy()


@pytest.fixture(scope="module")
def panning() -> np.ndarray:
    """Four pictures that drift by one pixel down and two to the right in every frame."""
    large = textures(4, 96, np.random.default_rng(0))
    return clips(torch.stack([large[:, i : i + 48, 2 * i : 2 * i + 48] for i in range(9)], dim=1))


@needs_skimage
def test_motion_explains_what_disorder_and_flicker_do_not(panning: np.ndarray) -> None:
    random = np.random.default_rng(1)
    shuffled = np.stack([clip[random.permutation(9)] for clip in panning])
    flickering = np.clip(panning + random.normal(0, 15, panning.shape), 0, 255).astype(np.uint8)
    unrelated = clips(textures(36, 48, random).view(4, 9, 48, 48))
    real = flow.unexplained(flow.flow_changes(panning))
    assert real < 0.1
    for damaged in (shuffled, flickering, unrelated):
        assert flow.unexplained(flow.flow_changes(damaged)) > 2 * real


@needs_skimage
def test_still_clips_have_nothing_to_explain(panning: np.ndarray) -> None:
    changes = flow.flow_changes(np.repeat(panning[:, :1], 5, axis=1))
    assert np.all(changes == 0) and flow.unexplained(changes) == 0


@needs_skimage
def test_clips_are_measured_one_by_one(panning: np.ndarray) -> None:
    both = flow.flow_changes(panning[:2])
    np.testing.assert_array_equal(
        both, np.concatenate([flow.flow_changes(panning[:1]), flow.flow_changes(torch.from_numpy(panning[1:2]))])
    )


def test_without_the_library_one_sentence_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"evaluation\.flow needs scikit-image.*reco-tune\[flow\]"):
        flow.require_flow()
