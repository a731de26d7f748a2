"""Window starts: the grid by hand, the distribution in closed form, a sequence that continues where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from reco_tune.windows import WindowSampler, start_grid

FRAME = 9
"""Tokens of a block; clips here have five."""


@pytest.mark.parametrize(
    ("num_tokens", "length", "stride", "starts"),
    [
        pytest.param(45, 18, 9, [0, 9, 18, 27], id="half a window apart"),
        pytest.param(45, 18, 18, [0, 18, 27], id="the last start is off the stride"),
        pytest.param(45, 45, 45, [0], id="the whole clip"),
        pytest.param(45, 44, 44, [0, 1], id="all but one token"),
        pytest.param(5, 2, 1, [0, 1, 2, 3], id="every token"),
        pytest.param(1, 1, 1, [0], id="one token"),
    ],
)
def test_grid_of_starts(num_tokens: int, length: int, stride: int, starts: list[int]) -> None:
    assert start_grid(num_tokens, length, stride) == starts


@pytest.mark.parametrize(
    ("probability", "by_frame"),
    [
        pytest.param("uniform", [0.25, 0.5, 0.5, 0.5, 0.25], id="uniform: both edges half as often"),
        pytest.param(0.5, [1 / 2, 2 / 3, 1 / 3, 1 / 3, 1 / 6], id="balanced"),
        pytest.param(1.0, [1, 1, 0, 0, 0], id="first frame only"),
        pytest.param(0.0, [0, 1 / 3, 2 / 3, 2 / 3, 1 / 3], id="never the first frame"),
    ],
)
def test_coverage_by_frame_in_closed_form(probability: Any, by_frame: list[float]) -> None:
    coverage = WindowSampler(5 * FRAME, 2 * FRAME, FRAME, probability, seed=0).coverage()
    assert coverage[::FRAME] == pytest.approx(by_frame)
    assert sum(coverage) == pytest.approx(2 * FRAME)


@pytest.mark.parametrize(("length", "stride"), [(18, 9), (18, 18), (45, 45), (7, 3)])
@pytest.mark.parametrize("probability", ["uniform", 0.0, 0.25, 0.5, 1.0])
def test_draws_follow_the_distribution(length: int, stride: int, probability: Any) -> None:
    sampler, draws = WindowSampler(45, length, stride, probability, seed=3), 10_000
    expected = sampler.distribution()
    assert sum(expected.values()) == pytest.approx(1)
    if probability != "uniform" and len(expected) > 1:
        assert expected[0] == probability
    seen = Counter(sampler.draw() for _ in range(draws))
    assert set(seen) <= {start for start, p in expected.items() if p > 0}
    for start, p in expected.items():
        assert abs(seen[start] - draws * p) <= 4.5 * (draws * p * (1 - p)) ** 0.5, (
            start
        )  # 4.5 standard deviations, fixed seed


def test_every_token_can_have_a_loss_whatever_the_grid() -> None:
    for length in range(1, 12):
        for stride in range(1, length + 1):
            assert min(WindowSampler(11, length, stride, 0.5, seed=0).coverage()) > 0, (length, stride)


def test_state_goes_through_json_and_continues_the_sequence() -> None:
    sampler = WindowSampler(45, 18, 9, 0.5, seed=7)
    for _ in range(100):
        sampler.draw()
    state = json.loads(json.dumps(sampler.state_dict()))
    uninterrupted = [sampler.draw() for _ in range(200)]
    resumed = WindowSampler(45, 18, 9, 0.5, seed=99)
    resumed.load_state_dict(state)
    assert [resumed.draw() for _ in range(200)] == uninterrupted


def test_seeds_make_sequences() -> None:
    first, same, other = (
        [sampler.draw() for _ in range(50)] for sampler in (WindowSampler(45, 18, 9, 0.5, seed=s) for s in (1, 1, 2))
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((45, 46, 9, 0.5), r"length_tokens \(46\)", id="longer than the clip"),
        pytest.param((45, 0, 1, 0.5), r"length_tokens \(0\)", id="no window"),
        pytest.param((45, 18, 19, 0.5), r"stride_tokens \(19\)", id="tokens between windows"),
        pytest.param((45, 18, 0, 0.5), r"stride_tokens \(0\)", id="no stride"),
        pytest.param((45, 18, 9, 1.5), r"first_frame_probability \(1.5\)", id="above one"),
        pytest.param((45, 18, 9, -0.1), r"first_frame_probability \(-0.1\)", id="negative"),
        pytest.param((45, 18, 9, float("nan")), r"first_frame_probability \(nan\)", id="not a number"),
        pytest.param((45, 18, 9, "balanced"), r"first_frame_probability \(balanced\)", id="an unknown word"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSampler(*arguments, seed=0)
