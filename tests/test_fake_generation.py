"""Generation and evaluation on a device that is not the CPU: nothing is left behind, nothing is read back in a step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from fake_device import fake_device
from test_generation import make_model
from test_i3d import StandIn, script
from test_static_sampling import OPTIONS
from test_suite import changed
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.device import in_halves
from reco_tune.evaluation import EvaluationResult, evaluate, prepare_evaluation, rungs, suite, video_features
from reco_tune.evaluation.feature_networks import VideoNetwork
from reco_tune.evaluation.i3d import load_i3d
from reco_tune.generation import codes
from reco_tune.model import VideoTransformer, sampling
from reco_tune.settings import Experiment
from reco_tune.settings.protocols import PUBLISHED
from reco_tune.tokenizers import load_tokenizer
from reco_tune.tokenizers.vector_quantized import VectorQuantizedTokenizer, VideoAutoencoder
from reco_tune.training import build_scheme

Make = Callable[..., Experiment]
SMALL: dict[str, object] = {
    "window.length_blocks": 2,
    "window.stride_tokens": 9,
    "evaluation.samples": 20,
    "evaluation.sampling_seeds": 1,
}
SCHEMES = ("window", "fewer_frames", "fewer_frames_tokens")
"""One for each way that clips are put together; `full` and `masked_full` sample as `window` does."""


@contextmanager
def drawing_device() -> Iterator[torch.device]:
    """The fake device, on which noise can be drawn; torch's own fake one takes no generator."""
    with fake_device() as device, patch.object(Tensor, "exponential_", lambda noise, generator=None: noise):
        yield device


@contextmanager
def read_back() -> Iterator[None]:
    """Whoever looks at fake values sees zeros, at a single one 1: for what ends in numbers, as an evaluation does."""

    def numpy(values: Tensor) -> Any:
        if values.device.type != "cpu":
            raise TypeError("values on a device are no array; move them to the CPU first")
        return np.zeros(values.shape, str(values.dtype).removeprefix("torch."))

    answers = {
        "numpy": numpy,
        "tolist": lambda values: np.zeros(values.shape).tolist(),
        "item": lambda value: 1,
        "__float__": lambda value: 1.0,
        "__bool__": lambda value: True,
    }
    with patch.multiple(FakeTensor, create=True, **answers):
        yield


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_clip_is_sampled_without_a_look_at_the_device(
    options: dict[str, Any], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that a step reads back would make the GPU wait 5,120 times a clip, and could not be recorded."""
    looks = []
    monkeypatch.setattr(sampling, "check_finite", looks.append)
    with drawing_device() as device:
        model = make_model(num_tokens=5).float().to(device)
        labels = torch.zeros(6, dtype=torch.long, device=device)
        for prompt in (None, torch.zeros(6, 3, dtype=torch.long, device=device)):
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                found = model.generate(labels, torch.Generator(device), **options, prompt_BP=prompt)
            assert found.device == device and found.shape == (6, 5)
    assert len(looks) == 2, "one look for each clip's last code"


def test_a_look_in_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: `torch.multinomial` on a GPU waits to see whether its probabilities are some."""
    monkeypatch.setattr(
        sampling.Drawing,
        "codes",
        lambda self, logits, noise: torch.full((6,), int(logits.argmax()), device=logits.device),
    )
    with drawing_device() as device, pytest.raises(DataDependentOutputException):
        make_model(num_tokens=5).float().to(device).generate(torch.zeros(6, dtype=torch.long, device=device))


@pytest.mark.parametrize("planted", ["position_embedding", "class_embedding", "head.weight", "blocks.1.qkv.weight"])
def test_a_weight_left_on_the_cpu_is_found(planted: str) -> None:
    with drawing_device() as device, pytest.raises(RuntimeError, match="device"):
        model = make_model(num_tokens=5).float().to(device)
        *path, name = planted.split(".")
        owner = model.get_submodule(".".join(path))
        setattr(owner, name, torch.nn.Parameter(getattr(owner, name).detach().cpu()))
        model.generate(torch.zeros(6, dtype=torch.long, device=device))


def on_the_device(
    measure: Callable[[VideoTransformer], Any],
    experiment: Experiment,
    cache: TokenCache,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """What is measured of a model there; what files hold is read before, because fake values have no hash."""
    reference, tokenizer = prepare_evaluation(experiment, cache), load_tokenizer(cache.tokenizer_path)
    for module in (suite, rungs):
        monkeypatch.setattr(module, "prepare_together", lambda *arguments: reference)
        monkeypatch.setattr(module, "load_tokenizer", lambda path: tokenizer)
    model = build_scheme(experiment, cache).build_model()
    with drawing_device() as device, read_back():
        return measure(model.to(device))


def evaluated_on_the_device(
    experiment: Experiment, cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> EvaluationResult:
    """The whole evaluation there."""
    found = on_the_device(lambda model: evaluate(model, experiment, cache), experiment, cache, monkeypatch)
    assert isinstance(found, EvaluationResult)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_is_evaluated(
    scheme: str, prepared: tuple[Experiment, TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes, their pixels, features, classes, motion, flow, and every analysis."""
    guided = {"sampling.guidance": 1.5, "training.class_dropout": 0.1, "training.precision": "bfloat16"}
    flow = {"evaluation.flow": importlib.util.find_spec("skimage") is not None}
    experiment = changed(prepared[0], {**SMALL, **guided, **flow, "window.scheme": scheme})
    found = evaluated_on_the_device(experiment, prepared[1], monkeypatch)
    assert {"fvd", "motion_distance", "class_accuracy", "lipschitz_tokens"} <= set(found.metrics)
    assert {"loss_by_frame_generated", "error_growth", "frame_accuracy"} <= set(found.curves)


@pytest.mark.parametrize("protocol", ["native-random", "native-pca"])
def test_other_features_are_computed_there(
    protocol: str, prepared: tuple[Experiment, TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"evaluation.protocol": protocol, "evaluation.analyses": False, "data.class_conditional": False}
    experiment = changed(prepared[0], {**SMALL, **changes, "window.scheme": "fewer_frames_tokens"})
    assert "fvd" in evaluated_on_the_device(experiment, prepared[1], monkeypatch).metrics


def test_a_rung_is_measured_there(prepared: tuple[Experiment, TokenCache], monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache = changed(prepared[0], SMALL), prepared[1]
    measure = rungs.KernelAtRungs(experiment, cache, steps={7})
    found = on_the_device(lambda model: measure(7, model), experiment, cache, monkeypatch)
    assert set(found.metrics) == {"kernel_distance"}


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_a_published_protocol_shows_its_network_clips_there(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripted, as the real file is; the control is a network that stays on the CPU."""
    path = tmp_path / "i3d.pt"
    sha256, clips = script(StandIn(), path), np.zeros((10, 17, 3, 12, 12), dtype=np.uint8)
    moved, left = (load_i3d(path, sha256, protocol, PUBLISHED[protocol]) for _ in range(2))
    with fake_device() as device, read_back():
        assert moved.describe(clips, str(device)).features_BD.shape == (10, 400)
        monkeypatch.setattr(torch.jit.ScriptModule, "to", lambda network, device: network)
        with pytest.raises(RuntimeError, match="conv3d"):  # TorchScript says where, not why
            left.describe(clips, str(device))


def test_an_extractor_is_fitted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps on clips moved as bytes, and how well it does on others."""
    monkeypatch.setattr(video_features, "FIT_STEPS", 2)
    clips, labels = np.zeros((12, 5, 3, 40, 40), dtype=np.uint8), np.arange(12) % 3
    with drawing_device() as device, read_back():
        fitted = video_features.fit_extractor("native", clips, labels, 3, clips[:4], labels[:4], device=str(device))
    assert set(fitted.quality) == {"class_accuracy", "frame_accuracy", "motion_r2"}


def test_a_network_of_a_tokenizer_works_there() -> None:
    network = VideoAutoencoder(num_codes=32, spatial_stride=4, temporal_stride=2, width=8)
    tokenizer = VectorQuantizedTokenizer(network)
    with drawing_device() as device:
        codes_Btrc = tokenizer.encode(torch.zeros(2, 5, 3, 16, 16, dtype=torch.uint8, device=device))
        assert codes_Btrc.device == device and codes_Btrc.shape == (2, 3, 4, 4)
        assert tokenizer.decode(codes_Btrc).shape == (2, 5, 3, 16, 16)


def test_an_extractor_left_on_the_cpu_is_found(
    prepared: tuple[Experiment, TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoNetwork, "to", lambda network, device: network)
    with pytest.raises(RuntimeError, match="device"):
        evaluated_on_the_device(changed(prepared[0], SMALL), prepared[1], monkeypatch)


SIZES = {
    "all at once": ([20, 20, 10], 50, [[(0, 0, 20), (1, 0, 20), (2, 0, 10)]]),
    "two at once": ([20, 20, 10], 45, [[(0, 0, 20), (1, 0, 20)], [(2, 0, 10)]]),
    "one at once": ([20, 20], 20, [[(0, 0, 20)], [(1, 0, 20)]]),
    "in parts": ([20, 5], 7, [[(0, 0, 6)], [(0, 6, 7)], [(0, 13, 7)], [(1, 0, 5)]]),
    "none": ([], 7, []),
}


@pytest.mark.parametrize(("sizes", "at_once", "expected"), SIZES.values(), ids=SIZES)
def test_who_is_sampled_together(sizes: list[int], at_once: int, expected: list[list[tuple[int, int, int]]]) -> None:
    assert [[tuple(part) for part in pack] for pack in codes.packs(sizes, at_once)] == expected


@pytest.mark.parametrize("gibibytes", [0.0, 1.01, 1.04, 1.1, 10.0], ids=str)
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_as_many_clips_as_free_memory_holds(gibibytes: float, bfloat16: bool, toy_experiment: Make) -> None:
    """At least one, whole requests of 20 where one fits, never more than are asked for."""
    model, drawing = VideoTransformer(1000, 200, 1, 64, 3, 4), sampling.Drawing(guidance=1.5)
    own = {"training.precision": "bfloat16" if bfloat16 else "float32", "training.class_dropout": 0.1}
    experiment = toy_experiment({"sampling.guidance": 1.5, **own})
    clips = codes.clips_at_once(model, experiment, int(gibibytes * 2**30), [20] * 5)
    taken = clips * sampling.static_bytes_per_clip(model.settings, drawing, bfloat16)
    room = 0.85 * (gibibytes - 1) * 2**30
    assert clips == 1 or taken < room
    assert clips == 100 or clips % 20 == 0 or clips < 20
    assert clips == 100 or taken + 20 * taken / clips > room - 2**22, "another request would not fit"


def test_memory_in_pieces_makes_batches_smaller(toy_experiment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, decoding and encoding again go on with half as many clips; one that does not fit is told."""
    made = []

    def build(model: VideoTransformer, drawing: sampling.Drawing, clips: int, bfloat16: bool) -> sampling.Sampler:
        made.append(clips)
        if clips > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sampling.Sampler(model, drawing)

    monkeypatch.setattr(codes, "sampler_for", build)
    assert codes.largest_sampler(make_model(), sampling.Drawing(), False, 20)[1] == 5
    assert made == [20, 10, 5]

    def work(batch: Tensor) -> Tensor:
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch + 1

    room = 3
    assert torch.equal(in_halves(work, torch.arange(10)), torch.arange(10) + 1)
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(work, torch.arange(10))
