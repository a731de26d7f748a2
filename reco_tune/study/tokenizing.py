"""Tokenizing on a cluster: Ray tasks decode and encode parts of clips, wherever there is room.

The driver keeps the lists of clips, stores pixels, fits the tokenizer, and alone writes the cache. The cache has the
same bytes as one written by a single process. Every node must see the videos and the cache folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import ray

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import ReCoTuneError, RunFailedError
from reco_tune.preparation import prepare_tokens
from reco_tune.preparation.encoding import EncodedPart, PartTask
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.study.cluster import cluster, place

_AHEAD = 2
"""Tasks per place that wait or run: enough to keep every place busy."""
_MOST_PLACES = 10**6


def prepare_tokens_on_cluster(
    experiment: Experiment, address: str | None, progress: Progress = quiet, piece_blocks: Sequence[int] = ()
) -> TokenCache:
    """`prepare_tokens` with the Ray cluster at `address`, or one of this machine. It connects only if there is
    something to encode.

    Raises:
        StudyError: if no cluster can be reached.
        RunFailedError: if tasks died more often than `resources.max_failures`. Finished parts are kept.
        DataError: as `prepare_tokens`, and if a node does not see the files.
    """
    with ExitStack() as stack:
        places: list[int] = []

        def spread(function: Callable[[PartTask], EncodedPart], tasks: list[PartTask]) -> Iterator[EncodedPart]:
            resources = experiment.resources
            if not places:
                nodes = stack.enter_context(cluster(address, resources, experiment.cache_dir / "ray-temp"))
                places.append(
                    place(
                        resources.model_copy(update={"workers": 1, "concurrent_trials": None}), nodes, _MOST_PLACES
                    ).groups
                )
            options = {
                "num_cpus": resources.cpus_per_worker,
                "num_gpus": resources.gpus_per_worker,
                "max_retries": resources.max_failures,
            }
            yield from _results(ray.remote(**options)(function), tasks, _AHEAD * places[0])

        return prepare_tokens(experiment, progress, piece_blocks, spread)


def _results(remote: Any, tasks: list[PartTask], limit: int) -> Iterator[EncodedPart]:
    """Results in the order in which they are ready; never more than `limit` tasks at once."""
    later = iter(tasks)
    waiting = [remote.remote(task) for task in islice(later, limit)]
    while waiting:
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        waiting += [remote.remote(task) for task in islice(later, 1)]
        try:
            yield ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ReCoTuneError):
                raise error.cause from None
            raise RunFailedError(
                f"encoding a part of the clips failed ({error.cause!r}); run the command again to continue"
            ) from error
        except ray.exceptions.RayError as error:
            lost = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunFailedError(
                f"the cluster lost a task more often than resources.max_failures allows ({lost}); run again to go on"
                " where it stopped"
            ) from error
