"""Error growth: what cannot change does not, small errors respond linearly, and the law of a known curve is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reco_tune.evaluation.error_growth import error_growth, fit_growth
from reco_tune.model import VideoTransformer


@pytest.fixture
def case() -> tuple[VideoTransformer, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = VideoTransformer(16, 20, 3, 16, 2, 2, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5  # as after some training: at its initial weights attention hardly matters
    return model, torch.randint(16, (40, 20), generator=generator), torch.randint(3, (40,), generator=generator)


def test_no_error_stays_no_error(case) -> None:
    assert error_growth(*case, 4, noise_share=0.0) == [0.0] * 5


def test_without_attention_the_error_stays_in_its_block(case) -> None:
    model, tokens, labels = case
    with torch.no_grad():
        for block in model.blocks:
            block.attention_out.weight.zero_()
    first, *later = error_growth(model, tokens, labels, 4)
    assert first > 1e-4 and later == [0.0] * 4


def test_with_attention_it_reaches_every_block(case) -> None:
    assert all(value > 1e-6 for value in error_growth(*case, 4))


def test_twice_the_noise_is_twice_the_divergence(case) -> None:
    once, twice = error_growth(*case, 4, noise_share=0.001), error_growth(*case, 4, noise_share=0.002)
    np.testing.assert_allclose(np.array(twice) / once, 2, rtol=0.02)  # linear up to the square of the noise


def test_is_seeded_and_leaves_the_model_as_it_was(case) -> None:
    model, tokens, labels = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = error_growth(model, tokens, labels, 4, seed=1)
    assert first == error_growth(model, tokens, labels, 4, seed=1) != error_growth(model, tokens, labels, 4, seed=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_block_only(case) -> None:
    model, tokens, labels = case
    assert len(error_growth(model, tokens, labels, 20)) == 1


BLOCKS = np.arange(8)
LAWS = {
    "grows by a factor": (0.01 * 1.5**BLOCKS, "exponential", np.log(1.5)),
    "fades by a factor": (0.01 * 0.7**BLOCKS, "exponential", np.log(0.7)),
    "grows by a step": (0.01 + 0.02 * BLOCKS, "linear", 0.02),
}


@pytest.mark.parametrize(("curve", "kind", "expected"), LAWS.values(), ids=LAWS.keys())
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_finds_the_law_in_any_unit(curve: np.ndarray, kind: str, expected: float, unit: float) -> None:
    law = fit_growth([9.0, *(unit * curve)])
    assert law is not None and law.kind == kind
    found = (law.exponential_rate, law.exponential_low, law.exponential_high)
    if kind == "linear":
        found = tuple(value / unit for value in (law.linear_slope, law.linear_low, law.linear_high))
    assert found == pytest.approx((expected,) * 3, rel=1e-6)


def test_an_error_that_is_copied_has_rate_zero() -> None:
    law = fit_growth([0.3] * 6)
    assert law is not None and law.exponential_rate == pytest.approx(0) and law.linear_slope == pytest.approx(0)


def test_the_interval_of_the_rate_covers_it() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        law = fit_growth([1.0, *np.exp(0.2 * np.arange(6) + 0.1 * generator.normal(size=6))])
        assert law is not None
        covered += law.exponential_low <= 0.2 <= law.exponential_high
    assert abs(covered / 300 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize(
    "curve", [[0.1], [0.1, 0.2, 0.3], [0.1, 0.0, 0.0, 0.0]], ids=["one block", "two after it", "never arrives"]
)
def test_no_law_where_none_can_be_told(curve: list[float]) -> None:
    assert fit_growth(curve) is None
