"""Weights, gradients and AdamW's moments split over the workers (FSDP2), for models whose state does not fit one.

Each worker keeps a part of every parameter. A block's weights are gathered when a step comes to it and dropped when it
is left; its gradients are summed over the workers and split again as soon as backward has made them. What lies around
the blocks (embeddings, final norm, head) is gathered once a step.

    forward, block k:   gather, prefix (no gradient), window, drop        one gathering for both
    backward, block k:  gather, window, sum the gradient, drop

A window's prefix runs without a graph, so FSDP's own hooks, which wrap `forward`, would gather a block for it, drop it,
and gather it again for the window. In the built-in transformer the block is gathered before its prefix, and the
window's forward finds it there. Any other decoder runs its prefix through all of its layers first, and gathers them
twice. Nothing else runs without a graph on a split model, since torch would not drop weights after it (pytorch issue
149029) and ranks that sample different clips would wait for each other: `whole_model` is for that.

Knows FSDP2; refuses to know losses, optimisers and files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from reco_tune.model import Decoder, VideoTransformer
from reco_tune.model.attention import KeysValues
from reco_tune.model.transformer import Block
from reco_tune.training.compiling import compiled
from reco_tune.training.distributed import Group
from reco_tune.training.parameters import State, gathered_bytes, untrained


class ShardedParameters:
    """A model's weights and gradients, split over the workers."""

    def __init__(self, model: Decoder, group: Group, device: torch.device, half: bool) -> None:
        """Splits the model, layer by layer, onto the workers' devices.

        Args:
            model: whole, on the CPU; it is split in place.
            half: whether blocks are gathered in bfloat16 (their gradients are summed in float32).
        """
        self._model, self._group, self._device = model, group, device
        self.gathered_bytes = gathered_bytes(model.settings, half)
        self.frozen_bytes = untrained(model)[1] // group.size
        self._shell = _without_weights(model)
        mesh = init_device_mesh(device.type, (group.size,))
        own = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layer in model.layers():
            fully_shard(layer, mesh=mesh, mp_policy=own if half else MixedPrecisionPolicy(), reshard_after_forward=True)
            for norm in layer.modules():
                if isinstance(norm, nn.LayerNorm):
                    norm.forward = partial(_normed, norm)  # type: ignore[method-assign]
        fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head is read after the last layer
        register_fsdp_forward_method(model, "hidden")
        if isinstance(model, VideoTransformer):
            _gather_before_the_prefix(model)
        else:
            _gather_in_backward_what_comes_next(model)
        given_again = model.given_again()
        self._all = {name: cast(DTensor, parameter) for name, parameter in model.named_parameters()}
        self.frozen: dict[str, Tensor] = {
            name: parameter.detach()
            for name, parameter in self._all.items()
            if not (parameter.requires_grad or name in given_again)
        }
        self._parameters = {name: parameter for name, parameter in self._all.items() if parameter.requires_grad}
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.weights = [_local(parameter) for parameter in self._parameters.values()]
        self.gradients = [_local(parameter.grad) for parameter in self._parameters.values()]

    def last_backward(self) -> AbstractContextManager[None]:
        """Does nothing: every backward already ends with the mean of its gradients."""
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
        assert isinstance(self._model, VideoTransformer)  # settings say so
        for block in self._model.blocks:
            block.forward = partial(compiled(Block.forward), block)  # type: ignore[method-assign]
        self._model.run_block_before_a_window = compiled(Block.before_a_window)

    def whole_model(self) -> Decoder:
        model = copy.deepcopy(self._shell)
        whole = {name: cast(DTensor, parameter.detach()).full_tensor() for name, parameter in self._all.items()}
        filled = {id(own): nn.Parameter(whole[name], own.requires_grad) for name, own in model.named_parameters()}
        for module in model.modules():
            for name, own in module._parameters.items():
                if own is not None:
                    module._parameters[name] = filled[id(own)]  # a tensor that two modules share stays one
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self._device)
        return model


def _without_weights(model: Decoder) -> Decoder:
    """A copy whose parameters have no storage."""
    bare = {
        id(own): nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=own.requires_grad)
        for own in model.parameters()
    }
    return copy.deepcopy(model, bare)


def _gather_before_the_prefix(model: VideoTransformer) -> None:
    prefix = model._prefix

    def gathering(*arguments: Any) -> Iterator[KeysValues]:
        layers = prefix(*arguments)
        for block in model.blocks:
            cast(FSDPModule, block).unshard()
            yield next(layers)

    model._prefix = gathering  # type: ignore[method-assign, assignment]


def _gather_in_backward_what_comes_next(model: Decoder) -> None:
    """FSDP takes the order of forward turned round, in which the prefix stands before the window's first layer: there
    it would gather the last layer once more, for nothing.
    """
    layers = [cast(FSDPModule, layer) for layer in model.layers()]
    for layer, next_one in zip(layers, [cast(FSDPModule, model), *layers], strict=False):
        layer.set_modules_to_backward_prefetch([next_one])


def _normed(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    """With weights in the type of what is normed, whatever they were gathered in."""
    weight, bias = (None if own is None else own.to(hidden.dtype) for own in (norm.weight, norm.bias))
    return F.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)


def _local(tensor: Tensor | None) -> Tensor:
    """This worker's part, the live memory."""
    assert tensor is not None
    with torch.no_grad():  # with a graph it would be a view, of which nothing may be changed in place
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor
