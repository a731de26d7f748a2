"""A group's thread that outlives its cluster starts and joins no other."""

from __future__ import annotations

import threading

import pytest
import ray

from reco_tune.study import ray_internals


@pytest.mark.parametrize(("name", "starts"), [(f"{ray_internals.GROUP_THREAD}0", False), ("another", True)])
@pytest.mark.parametrize("use", ["put", "placement_group", "remote"])
def test_a_groups_thread_never_starts_ray(monkeypatch: pytest.MonkeyPatch, name: str, starts: bool, use: str) -> None:
    """It joined the cluster of another study on the machine, whose token it lacked, and Ray ended the process."""
    assert not ray.is_initialized()
    started: list[str] = []
    monkeypatch.setattr(ray, "init", lambda: started.append(threading.current_thread().name))
    failed: list[BaseException] = []

    def work() -> None:
        try:
            if use == "put":
                ray.put(1)
            elif use == "placement_group":
                ray.util.placement_group([{"CPU": 1}])
            else:
                ray.remote(lambda: 1).remote()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()
    assert failed, "nothing was started"
    assert bool(started) == starts and not ray.is_initialized()
