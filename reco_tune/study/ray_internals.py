"""All that this project uses of Ray and that Ray does not promise: `ray._private` and `ray.train.v2._internal`.

A release of Ray that moves one of them breaks here and nowhere else; `pyproject.toml` holds Ray to the releases that
were tried.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import tune
from ray._private import services, state, worker
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.widgets.util import in_notebook

HEAD = "node:__internal_head__"
"""Resource of every cluster's head node. Trial drivers ask for a thousandth of it: they start at once and never take a
worker's CPU.
"""
LONGEST_SOCKET = "session_0000-00-00_00-00-00_000000_{pid}/sockets/dash_MetricsHead"
"""The longest path of a socket that Ray makes in its temporary folder; `pid` is the driver's."""


def notebook_reporter() -> tune.CLIReporter | None:
    """What Tune is given to report with: in a notebook its own one clears what the cell shows, however silent it is
    told to be; anywhere else it warns of any that is given.
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
    """Whether a person has a token of Ray's: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    forget_token()
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def forget_token() -> None:
    """Lets Ray look for a token anew: it remembers the first one for the life of a process."""
    AuthenticationTokenLoader.instance().reset_cache()


def silence() -> None:
    """The raylet's error messages go to Ray's log files alone."""
    worker.print_to_stdstream = lambda *_, **__: None


class WarmTrainer(TorchTrainer):
    """A trainer without the callbacks that start a process per group, each of which imports for seconds, for what is
    not there: data sets, and, on a cluster that ends with its driver, placement groups that a dead controller leaves
    behind.
    """

    own_cluster = False
    controller: Any = None
    """Train's actor that the group belongs to, once there is one."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        """As Ray does it, but with the actor in reach."""
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        actor = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(TrainController)
        self.controller = actor.remote(**given)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def _create_default_callbacks(self) -> list[Any]:
        needless = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if self.own_cluster else set())
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in needless]
