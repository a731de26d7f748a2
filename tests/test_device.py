"""What a GPU is asked about its memory, with a stand-in for the answers."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        pytest.param("0::/", {}, None, id="no limit"),
        pytest.param("0::/", {"memory.max": "max"}, None, id="a container without one"),
        pytest.param("0::/", {"memory.max": "4096"}, 4096, id="a container"),
        pytest.param("0::/job/step", {"job/memory.max": "8192", "job/step/memory.max": "max"}, 8192, id="a batch job"),
        pytest.param(
            "3:cpu:/x\n2:memory:/slurm/job",
            {"memory/slurm/memory.limit_in_bytes": "12288"},
            12288,
            id="the older groups",
        ),
    ],
)
def test_memory_of_a_machine_is_what_this_process_may_use(
    group: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    """A container's processes see the memory of the whole machine, and are ended long before it is full."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert device.machine_bytes(tmp_path) == (limit or device.machine_bytes(tmp_path / "nothing"))
    assert device.machine_bytes(tmp_path / "nothing") > 2**28
