"""The score of a run at its rungs, before training ends: the kernel distance of a few generated clips. It is unbiased
even for few clips.

The clips are the first ones of the full evaluation (same classes, batches and seeds) and are compared with the same
real clips. If the batch size does not divide their number, the last batch is shorter. So all runs use the same draws,
and the value depends on the model alone, not on the number of ranks or the time of measurement.
"""

from __future__ import annotations

from collections.abc import Container

import torch

from reco_tune import quantities as q
from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation.clock import Clock
from reco_tune.evaluation.kernel import kernel_distance
from reco_tune.evaluation.protocols import prepare_together
from reco_tune.evaluation.sampling_plan import asked_for, batches_of
from reco_tune.generation import Request, generate_clips
from reco_tune.model import Decoder
from reco_tune.progress import Progress, quiet
from reco_tune.settings import RUNG_CLIPS, Experiment
from reco_tune.tokenizers import load_tokenizer
from reco_tune.training import Group, RungMeasurement


class KernelAtRungs:
    """A `measure` of `training.fit`."""

    def __init__(
        self,
        experiment: Experiment,
        cache: TokenCache,
        steps: Container[int],
        group: Group = Group(),
        progress: Progress = quiet,
    ) -> None:
        """
        Args:
            steps: the steps at which rungs end. At other steps nothing is generated or loaded.
        """
        self._experiment, self._cache, self._steps, self._group, self._progress = (
            experiment,
            cache,
            steps,
            group,
            progress,
        )

    def __call__(self, step: int, model: Decoder) -> RungMeasurement:
        if step not in self._steps:
            return RungMeasurement()
        clock = Clock(model.device)
        was_training = model.training
        model.eval()
        try:
            distance = self._distance(model, clock)
        finally:
            model.train(was_training)
        return RungMeasurement({q.KERNEL_DISTANCE.name: distance}, clock.totals(self._group))

    def _distance(self, model: Decoder, clock: Clock) -> float:
        with clock.measure("evaluation"):
            reference = prepare_together(
                self._experiment, self._cache, self._group
            )  # not kept in memory: between rungs training needs the whole GPU
            tokenizer = load_tokenizer(self._cache.tokenizer_path)
            given_N = torch.from_numpy(asked_for(self._experiment, self._cache).given_N[:RUNG_CLIPS])
        device = str(model.device)
        batches = list(batches_of(len(given_N), 1, self._experiment.sampling.batch_size))
        own = batches[self._group.rank :: self._group.size]
        places = [torch.empty(0, dtype=torch.long)]
        features = [torch.empty(0, reference.features_MD.shape[1], dtype=torch.float64)]
        requests = [Request(given_N[batch.start : batch.stop], batch.draw_seed) for batch in own]
        made = generate_clips(model, self._experiment, tokenizer, self._cache.grid, requests)
        for done, batch in enumerate(own, 1):
            with clock.measure("generation"):
                generated = next(made)
            with clock.measure("evaluation"):
                places.append(torch.arange(batch.start, batch.stop))
                features.append(
                    torch.from_numpy(reference.extractor.describe(generated.video_BFCHW, device).features_BD)
                )
            self._progress(done, len(own), "generating clips for the rung")
        with clock.measure("evaluation"):
            place_N, features_ND = (torch.cat(self._group.gather(torch.cat(parts))) for parts in (places, features))
            return kernel_distance(features_ND[place_N.argsort()].numpy(), reference.features_MD)
