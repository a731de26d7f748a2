"""What a GPU is asked about its memory, with a stand-in for the answers."""

from __future__ import annotations

import pytest
import torch

from reco_tune import device

GPU = torch.device("cuda", 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a card of 80 of which 30 are free and this process keeps 12: what is asked, in turn."""
    names: list[str] = []
    answers = {"mem_get_info": (30, 80), "memory_reserved": 12, "empty_cache": None}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, answer=answer: (names.append(name), answer)[1])
    return names


@pytest.mark.parametrize(
    ("part", "free"),
    [
        pytest.param(1.0, 30, id="a GPU of one's own"),
        pytest.param(0.5, 28, id="half of one, of which 12 are taken"),
        pytest.param(0.1, 0, id="more taken than may be"),
    ],
)
def test_free_memory_leaves_other_runs_their_part(part: float, free: int, asked: list[str]) -> None:
    """A run that generates must not take what the one beside it trains with a moment later."""
    assert device.free_bytes(GPU, part) == free
    assert asked[0] == "empty_cache", "what is kept for later counts as free"


def test_nobody_knows_about_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert device.free_bytes(cpu) is device.total_bytes(cpu) is None and device.peak_bytes(cpu) == 0
