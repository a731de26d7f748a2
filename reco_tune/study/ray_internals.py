"""All uses of Ray's private parts: `ray._private` and `ray.train.v2._internal`. If a release of Ray moves one of them,
only this file breaks. `pyproject.toml` limits Ray to the releases that were tried.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray._private import auto_init_hook, services, state, worker
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import AbortedState
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
from ray.train.v2._internal.execution.worker_group import state as state_of_workers
from ray.util import remove_placement_group
from ray.widgets.util import in_notebook

HEAD = "node:__internal_head__"
"""Resource of every cluster's head node. The dispatcher asks for a thousandth of it."""
LONGEST_SOCKET = "session_0000-00-00_00-00-00_000000_{pid}/sockets/dash_MetricsHead"
"""Longest path of a socket that Ray makes in its temporary folder. `pid` is the driver's."""


def notebook_reporter() -> tune.CLIReporter | None:
    """The progress reporter for Tune. In a notebook, Tune's own reporter clears the cell's output even at verbosity 0.
    In other places, Tune warns about any reporter that it is given.
    """
    return tune.CLIReporter() if in_notebook() else None


def running_clusters() -> list[str]:
    """Addresses of the Ray clusters that run on this machine, whoever started them."""
    services.find_gcs_addresses.cache_clear()
    return sorted(services.find_gcs_addresses())


def cluster_here() -> str:
    """Address of the cluster that `auto` means, HOST:PORT; empty where there is none."""
    try:
        return services.get_ray_address_from_environment("auto", None) or ""
    except ConnectionError:
        return ""


def draining() -> set[str]:
    """Ids of the machines that will be taken away."""
    return set(state.state.get_draining_nodes())


def has_token() -> bool:
    """Whether the user has a token of Ray: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    forget_token()
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def forget_token() -> None:
    """Makes Ray look for a token again. It remembers the first one for the life of a process."""
    AuthenticationTokenLoader.instance().reset_cache()


def silence() -> None:
    """Sends the raylet's error messages only to Ray's log files."""
    worker.print_to_stdstream = lambda *_, **__: None


GROUP_THREAD = "reco_tune-group-"
"""Beginning of the names of threads that run a worker group."""


class _OutsideOfGroups:
    """Whether Ray connects or starts by itself on its first use, as it does unless RAY_ENABLE_AUTO_CONNECT is 0. A
    group's thread that outlives its cluster must not do this. It would join another cluster of this machine, and
    without that cluster's token Ray ends the process.
    """

    def __init__(self, elsewhere: bool) -> None:
        self._elsewhere = elsewhere

    def __bool__(self) -> bool:
        return self._elsewhere and not threading.current_thread().name.startswith(GROUP_THREAD)


auto_init_hook.enable_auto_connect = _OutsideOfGroups(auto_init_hook.enable_auto_connect)


class Controller(TrainController):
    """Train's controller of one worker group. It lives in the driver's process, not in its own. So the controllers of a
    thousand groups fit onto one machine, and they die only with the driver.
    """

    placement: Any = None
    """Where the group's workers are, or will be."""
    leaving = False

    def __init__(self, poll_seconds: float, **given: Any) -> None:
        """Args: poll_seconds: time between two checks of the workers."""
        super().__init__(**given)
        self._health_check_interval_s = poll_seconds
        controller = self

        class Workers(WorkerGroup):
            def _create_placement_group(self, *given: Any) -> Any:
                controller.placement = super()._create_placement_group(*given)
                return controller.placement

            def _init_train_context_on_workers(self, workers: Any, barrier: Any, given: Any) -> None:
                """As in Train, but without an actor that workers could ask for checkpoints."""
                shared = {
                    "train_run_context": self._train_run_context,
                    "synchronization_actor": barrier,
                    "storage_context": self._storage_context,
                    "worker_callbacks": self._worker_callbacks_to_propagate,
                    "controller_actor": None,
                }
                ray.get(
                    [
                        one.actor.init_train_context.remote(
                            distributed_context=one.distributed_context,
                            **shared,
                            **{name: values[rank] for name, values in given.items()},
                        )
                        for rank, one in enumerate(workers)
                    ]
                )
                self._decorate_worker_log_file_paths(workers)

        self.worker_group_cls = Workers

    def leave(self) -> None:
        """Ends the group, from another thread. Calls of this thread that wait for the workers fail with them. A call
        that starts new workers meanwhile ends with the next call.
        """
        self.leaving = True
        if self.placement is not None:
            with suppress(Exception):  # the cluster may be going down, and the group with it
                remove_placement_group(self.placement.placement_group)

    async def _run_control_loop_iteration(self) -> None:
        if self.leaving:
            self._state = AbortedState()
        else:
            await super()._run_control_loop_iteration()


class NoBarrier:
    """Replaces the process that Train starts for every group beside its controller. Workers use it when they report to
    Train or use Train's collectives; our workers do neither.
    """

    def options(self, **_: Any) -> NoBarrier:
        return self

    def remote(self, **_: Any) -> NoBarrier:
        return self


worker_group.SynchronizationActor = NoBarrier()
state_of_workers._shutdown_sync_actor = lambda barrier: None


class WarmTrainer(TorchTrainer):
    """A trainer whose controller runs in the thread that calls `fit`.

    Leaves out the callbacks that start a process per group for features that are not used here: data sets, and the
    cleanup of placement groups of a dead controller.
    """

    poll_seconds = 0.5
    controller: Controller | None = None
    """Controller of the group, once there is one."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        self.controller = Controller(self.poll_seconds, **given)
        asyncio.run(self.controller.run())
        return self.controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        needless = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in needless]
