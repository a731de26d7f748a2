"""How numbers are kept and multiplied: what is set, where it holds, and what it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from fake_device import fake_device

from reco_tune.data.token_cache import TokenCache
from reco_tune.device import exact_float32
from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme, load_model, window_loss
from reco_tune.training.checkpoint import CacheInfo, save_model
from reco_tune.training.feed import Feed
from reco_tune.training.numerics import numerics_of_a_step, set_numerics
from reco_tune.training.objectives import continuity_term
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
GPU = {"resources.gpus_per_worker": 1}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switches of the process are as they were."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    torch.use_deterministic_algorithms(False)


def switches() -> tuple[bool, str, bool]:
    return (
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def test_float32_is_exact_whatever_was_set_before() -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    torch.set_float32_matmul_precision("medium")
    exact_float32()
    assert switches() == (False, "highest", False)


@pytest.mark.parametrize(
    ("own", "inside"),
    [
        ({}, (False, "highest", False)),
        ({"training.precision": "tf32"}, (False, "high", False)),
        ({"resources.deterministic": True}, (False, "highest", True)),
    ],
    ids=["exact", "tf32", "deterministic"],
)
def test_a_step_has_its_own_numerics_and_leaves_them_there(
    own: dict[str, object],
    inside: tuple[bool, str, bool],
    toy_cache: TokenCache,
    toy_experiment: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sampling, validation and FVD come between steps, in the same process; some of their kernels have no order."""
    experiment = toy_experiment({**GPU, **own})
    set_numerics(experiment.resources)
    scheme = build_scheme(experiment, toy_cache)
    step, seen = OptimiserStep(scheme, torch.device("cpu")), []
    loss = step._loss
    monkeypatch.setattr(step, "_loss", lambda *given: (seen.append(switches()), loss(*given))[1])
    step.run([Feed(scheme, toy_cache).next()], 1e-3)
    assert seen == [inside] and switches() == (False, "highest", False)


def test_a_step_that_fails_leaves_no_switch_behind() -> None:
    exact_float32()
    with pytest.raises(RuntimeError, match="in the middle"), numerics_of_a_step(tf32=True, deterministic=True):
        raise RuntimeError("in the middle")
    assert switches() == (False, "highest", False)


def test_an_attention_that_is_not_installed_is_refused(toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=r"resources\.attention is flash3.*not installed.*take auto"):
        set_numerics(toy_experiment({**GPU, "resources.attention": "flash3"}).resources)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"training.residual": "bfloat16"},
            r"training\.residual \(bfloat16\).*training\.precision bfloat16, but that is float32.*leave",
        ),
        ({"resources.deterministic": True}, r"resources\.deterministic.*gpus_per_worker is 0.*leave it out"),
        ({"resources.attention": "cudnn"}, r"resources\.attention \(cudnn\).*gpus_per_worker is 0.*leave it out"),
    ],
    ids=["residual", "deterministic", "attention"],
)
def test_what_cannot_be_is_refused(own: dict[str, object], words: str, toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment(own)


HALF = {"training.precision": "bfloat16", "training.residual": "bfloat16"}


def test_the_residual_stream_is_kept_in_bfloat16_and_weights_are_not(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    kept = {}
    for residual in ("float32", "bfloat16"):
        experiment = toy_experiment({**HALF, "training.residual": residual, "model.depth": 4})
        scheme = build_scheme(experiment, toy_cache)
        step, micro_batch = OptimiserStep(scheme, torch.device("cpu")), Feed(scheme, toy_cache).next()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = step.model.hidden(*micro_batch.batch.read, 9, 18)
        assert hidden.dtype == getattr(torch, residual)
        step.run([micro_batch], 1e-3)
        assert {own.dtype for own in (*step.parameters.weights, *step.parameters.gradients)} == {torch.float32}
        kept[residual] = step.activation_bytes(micro_batch)
    assert kept["bfloat16"] < 0.95 * kept["float32"]


def test_gradients_of_a_bfloat16_stream_are_near_those_of_float32(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """8 bits of mantissa: a few percent of the norm, and not much more than autocast alone loses."""
    scheme = build_scheme(toy_experiment({"model.depth": 4}), toy_cache)
    batch = Feed(scheme, toy_cache).next().batch
    gradients = {}
    for name, residual, half in (
        ("exact", "float32", False),
        ("autocast", "float32", True),
        ("both", "bfloat16", True),
    ):
        model = scheme.build_model()
        model.residual = residual
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            window_loss(model, *batch.read, 9, 18, continuity_weight=0.1).total.backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    lost = {
        name: float((own - gradients["exact"]).norm() / gradients["exact"].norm()) for name, own in gradients.items()
    }
    assert lost["autocast"] < 0.03 and lost["both"] < max(0.05, 4 * lost["autocast"])


def test_norms_of_a_bfloat16_stream_have_statistics_in_float32() -> None:
    """A mean of 1,024 numbers near 100 and their spread of 0.5 are lost in 8 bits of mantissa."""
    exact = 100 + 0.5 * torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
    stream, norm = exact.bfloat16(), torch.nn.LayerNorm(1024, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        normed = norm(stream)
    expected = F.layer_norm(stream.double(), (1024,), norm.weight.double())
    torch.testing.assert_close(normed.double(), expected, rtol=2**-8, atol=2**-8)
    naive = (stream - stream.mean(-1, keepdim=True)) / stream.std(-1, keepdim=True)
    assert (naive.double() - expected).abs().max() > 5 * (normed.double() - expected).abs().max()
    with fake_device() as device, torch.autocast(device.type, torch.bfloat16):
        assert norm.to(device)(stream.to(device)).dtype == torch.float32, "as CUDA's autocast does"


def test_neighbours_in_bfloat16_are_subtracted_in_float32() -> None:
    stream = (100 + torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = continuity_term(stream.double())
    assert continuity_term(stream).item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_model_is_loaded_with_the_stream_it_was_trained_with(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: object
) -> None:
    experiment = toy_experiment(HALF)
    model = build_scheme(experiment, toy_cache).build_model()
    save_model(tmp_path / "model", model, experiment, CacheInfo.of(toy_cache), 1)  # type: ignore[operator]
    assert load_model(tmp_path).model.residual == "bfloat16"  # type: ignore[arg-type]
