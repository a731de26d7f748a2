"""Warm worker groups: long-lived Ray Train runs whose loop takes job after job, so that a trial does not pay for their
start. Ray Train provides the process group, placement, and the restart of a group when a worker dies.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig

from reco_tune.study import worker
from reco_tune.study.cluster import Placement, machines
from reco_tune.study.ray_internals import GROUP_THREAD, WarmTrainer

RESTARTS, RESTARTS_PER_JOB = 100, 4
"""Number of deaths, over all jobs, after which a group is given up; it may die before it takes a job. The dispatcher
gives up on a single job much earlier.
"""
MACHINES_SECONDS = 2.0
"""Seconds between two checks of the cluster's machines."""
POLL_SECONDS = 0.5
"""Seconds between two checks of a group's workers. It is longer in a study with many groups."""
POLLS_PER_SECOND = 100
"""Largest number of checks per second over all groups."""
PROGRESS_PER_SECOND = 20
"""Largest number of progress messages per second over all workers. Nobody reads more."""
LEAVE_SECONDS = 60
"""Longest time that groups may take to leave."""


class WorkerPool:
    """All worker groups of a study, each run by a thread of the driver, in which Train's controller lives."""

    def __init__(
        self,
        dispatcher: Any,
        placement: Placement,
        storage: Path,
        jobs: int,
        room: Callable[[set[str]], int] = lambda joined: 0,
    ) -> None:
        """Starts the groups; returns at once.

        Args:
            storage: folder of Train's own state.
            jobs: about how many jobs they will do.
            room: called with the machines that have joined since the last call. Returns the number of groups for which
                there is room and work. Groups are added, never removed.
        """
        self.lost: dict[int, str] = {}
        """Reasons why groups are gone, by slot. They come back when a machine joins."""
        self._dispatcher, self._placement, self._storage = dispatcher, placement, storage.resolve()
        self._room = room
        self._restarts = RESTARTS + RESTARTS_PER_JOB * jobs
        self._trainers: list[WarmTrainer] = []
        """Trainers of the groups that exist."""
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._machines_joined = 0
        self._grow(placement.groups)
        self._watch = threading.Thread(target=self._watch_machines, daemon=True)
        self._watch.start()

    @property
    def groups(self) -> int:
        """Number of groups, including lost ones."""
        return len(self._threads)

    @property
    def gone(self) -> bool:
        """Whether no group is left."""
        return len(self.lost) == self.groups

    def join(self) -> None:
        """Waits until the groups have left. The dispatcher must have told them to."""
        self._closing.set()
        for thread in self._threads:
            thread.join(LEAVE_SECONDS)

    def end(self) -> None:
        """Ends groups that have not left. Call it while Ray runs: a thread that waits in Ray during its shutdown can
        end the process.
        """
        self._closing.set()
        self._watch.join(LEAVE_SECONDS)
        deadline = time.monotonic() + LEAVE_SECONDS
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            for trainer in list(self._trainers):
                if trainer.controller is not None:
                    trainer.controller.leave()
            for thread in self._threads:
                thread.join(0.2)

    def _keep(self, slot: int) -> None:
        """Runs one group until the dispatcher tells it to leave. If Train gives it up, because there was no room for it
        for minutes, it starts again when a machine has joined.
        """
        while not self._closing.is_set():
            joined = self._machines_joined
            try:
                self._run_group(slot)
                return
            except Exception as error:
                self.lost[slot] = " ".join(str(error).split())[:300]
            if not ray.is_initialized():
                # the cluster is gone and nobody waits for this job; whoever calls an actor now makes Ray start another
                # cluster
                return
            try:
                ray.get(self._dispatcher.lose.remote(slot, "its worker group was lost"))
                if self.gone:
                    ray.get(self._dispatcher.pause.remote())
                    return
            except Exception:
                return  # the cluster is going down
            while self._machines_joined == joined:
                if self._closing.wait(MACHINES_SECONDS):
                    return
            del self.lost[slot]

    def _run_group(self, slot: int) -> None:
        """Runs the group until it leaves or is lost. Its references to Ray go with it, because none may be left when
        Ray shuts down.
        """
        trainer = self._trainer(slot)
        self._trainers.append(trainer)
        try:
            trainer.fit()
        finally:
            self._trainers.remove(trainer)

    def _grow(self, groups: int) -> None:
        """Starts groups until there are as many as wanted."""
        for slot in range(self.groups, groups):
            thread = threading.Thread(target=self._keep, args=(slot,), name=f"{GROUP_THREAD}{slot}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _watch_machines(self) -> None:
        """Tells the dispatcher which machines are gone or will be, and lost groups that there is room again. Starts
        further groups if there is room for more.
        """
        known: set[str] = set()
        told: tuple[list[str], list[str]] = ([], [])
        while not self._closing.wait(MACHINES_SECONDS):
            try:
                alive, going = machines()
                joined = alive - known if known else set()
                room = self._room(joined)
                self._machines_joined += bool(joined)
                known |= alive
                if not self._closing.is_set():
                    self._grow(room)
                if (found := (sorted(known - alive), sorted(going))) != told:
                    ray.get(self._dispatcher.machines.remote(*found))
                    told = found
            except Exception:
                continue  # the cluster is going down, or busy: the next round tells it again

    def _trainer(self, slot: int) -> WarmTrainer:
        placement = self._placement
        trainer = WarmTrainer(
            worker.serve,
            train_loop_config={
                "dispatcher": self._dispatcher,
                "slot": slot,
                "execute": worker.execute,
                "progress_seconds": max(worker.PROGRESS_SECONDS, self.groups / PROGRESS_PER_SECOND),
            },
            torch_config=TorchConfig(),  # nccl for GPUs, else gloo
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers,
                use_gpu=placement.gpus > 0,
                resources_per_worker=placement.worker_resources,
            ),
            run_config=ray.train.RunConfig(
                # always a new name: with an old one, Train would look for its own checkpoints
                name=f"group-{slot}-{uuid.uuid4().hex[:8]}",
                storage_path=str(self._storage),
                failure_config=ray.train.FailureConfig(
                    max_failures=self._restarts,
                    max_preemption_failures=self._restarts,
                    controller_failure_limit=3,  # starts for which there was no room; `_keep` waits for some
                ),
            ),
        )
        trainer.poll_seconds = max(POLL_SECONDS, self.groups / POLLS_PER_SECOND)
        return trainer
