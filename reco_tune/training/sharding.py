"""Weights, gradients and AdamW's moments split over the workers (FSDP2), for models whose state does not fit one.

Each worker keeps a part of every parameter. A block's weights are gathered when a step comes to it and dropped when it
is left; its gradients are summed over the workers and split again as soon as backward has made them. What lies around
the blocks (embeddings, final norm, head) is gathered once a step.

    forward, block k:   gather, prefix (no gradient), window, drop        one gathering for both
    backward, block k:  gather, window, sum the gradient, drop

A window's prefix runs without a graph, so FSDP's own hooks, which wrap `forward`, would gather a block for it, drop it,
and gather it again for the window. Here the block is gathered before its prefix, and the window's forward finds it
there. Nothing else runs without a graph on a split model, since torch would not drop weights after it (pytorch issue
149029) and ranks that sample different clips would wait for each other: `whole_model` is for that.

Knows FSDP2; refuses to know losses, optimisers and files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from reco_tune.model import VideoTransformer
from reco_tune.model.attention import KeysValues
from reco_tune.model.transformer import Block
from reco_tune.training.compiling import compiled
from reco_tune.training.distributed import Group
from reco_tune.training.parameters import State, gathered_bytes


class ShardedParameters:
    """A model's weights and gradients, of which this worker has a part."""

    def __init__(self, model: VideoTransformer, group: Group, device: torch.device, half: bool) -> None:
        """Splits the model, block by block, onto the workers' devices.

        Args:
            model: whole, on the CPU; it is split in place.
            half: whether blocks are gathered in bfloat16 (their gradients are summed in float32).
        """
        self._model, self._group, self._device = model, group, device
        self.gathered_bytes = gathered_bytes(model.settings, half)
        mesh = init_device_mesh(device.type, (group.size,))
        own = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=own if half else MixedPrecisionPolicy(), reshard_after_forward=True)
            for norm in (block.attention_norm, block.mlp_norm):
                norm.forward = partial(_normed, norm)  # type: ignore[method-assign]
        fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head is read after the last block
        register_fsdp_forward_method(model, "hidden")
        _gather_before_the_prefix(model)
        self._parameters: dict[str, DTensor] = {
            name: cast(DTensor, parameter) for name, parameter in model.named_parameters()
        }
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.weights = [_local(parameter) for parameter in self._parameters.values()]
        self.gradients = [_local(parameter.grad) for parameter in self._parameters.values()]

    def last_backward(self) -> AbstractContextManager[None]:
        """Nothing: every backward ends with the mean of its gradients."""
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        squares = torch.stack([gradient.square().sum() for gradient in self.gradients]).sum()
        return self._group.sum_(squares).sqrt()

    def by_name(self, state: State) -> dict[str, Tensor]:
        return {
            name: DTensor.from_local(
                mine,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            for (name, parameter), mine in zip(self._parameters.items(), state, strict=True)
        }

    def storages(self) -> set[int]:
        now = (_local(parameter) for parameter in self._model.parameters())
        return {parameter.untyped_storage()._cdata for parameter in now}

    def compile_blocks(self) -> None:
        """Inside of FSDP's hooks, which gather a block around its `forward`."""
        for block in self._model.blocks:
            block.forward = partial(compiled(Block.forward), block)  # type: ignore[method-assign]
        self._model.run_block_before_a_window = compiled(Block.before_a_window)

    def whole_model(self) -> VideoTransformer:
        with torch.device("meta"):
            model = VideoTransformer(
                **asdict(self._model.settings), attention=self._model.blocks[0].attention, residual=self._model.residual
            )
        whole = {name: cast(DTensor, parameter.detach()).full_tensor() for name, parameter in self._parameters.items()}
        model.load_state_dict(whole, assign=True)
        return model


def _gather_before_the_prefix(model: VideoTransformer) -> None:
    prefix = model._prefix

    def gathering(*arguments: Any) -> Iterator[KeysValues]:
        layers = prefix(*arguments)
        for block in model.blocks:
            cast(FSDPModule, block).unshard()
            yield next(layers)

    model._prefix = gathering  # type: ignore[method-assign, assignment]


def _normed(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    """With weights in the type of what is normed, whatever they were gathered in."""
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight.to(hidden.dtype), None, norm.eps)


def _local(tensor: Tensor | None) -> Tensor:
    """This worker's part, the live memory."""
    assert tensor is not None
    with torch.no_grad():  # with a graph it would be a view, of which nothing may be changed in place
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor
