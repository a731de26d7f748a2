"""A GPU without a GPU: a device on which every operation knows shapes, types and devices and computes nothing.

It is made of torch's own parts: a backend written in Python and fake tensors. As on CUDA, and unlike on `meta`, tensors
of two devices do not go together (one number on the CPU does), autocast casts what it casts there, and a value that
code reads back in the middle of a step, which would make a GPU wait, is an error.

    with fake_device() as device:
        model = make_model().to(device)
        model(tokens.to(device), labels.to(device))     # raises where a tensor was left behind
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "fakegpu"

LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d")
LOWER += ("scaled_dot_product_attention",)
"""Operations that CUDA's autocast gives bfloat16."""
FLOAT32 = ("layer_norm", "softmax.int", "log_softmax.int", "cross_entropy_loss", "nll_loss", "exp", "log", "cumsum")
FLOAT32 += ("sum", "pow.Tensor_Scalar")
"""Those that it gives float32."""

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """The device; inside, every tensor is fake, and tensors of the CPU become so where they are used."""
    with (
        _Fake(allow_non_fake_inputs=True),
        patch.object(nn.Module, "_apply", _apply),
        patch.object(torch, "Generator", _Generator),
    ):
        yield torch.device(NAME, 0)


class _Fake(FakeTensorMode):
    """Moves real tensors to the device in name alone, not by a kernel that nobody wrote."""

    avoid_device_init = True

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch's fake convolution takes its weights from anywhere."""
        if func in CONVOLUTIONS:
            devices = {str(given.device) for given in args if isinstance(given, Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"{func} was given tensors of more than one device: {', '.join(sorted(devices))}")
        return super().dispatch(func, types, args, kwargs)


class _Backend(_DummyBackendModule):
    """What torch asks of `torch.fakegpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


def _register() -> list[torch.library.Library]:
    """Adds the device to this process; the libraries must stay alive."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, dtype in ((LOWER, torch.bfloat16), (FLOAT32, torch.float32)):
        for name in names:
            library.impl(name, _casting(name, dtype))
    return [rest, library]


def _casting(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def cast(value: Any) -> Any:
        wanted = (
            isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16) and value.device.type == NAME
        )
        return value.to(dtype) if wanted else value

    def run(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(NAME, enabled=False):
            return operation(*map(cast, arguments), **{key: cast(value) for key, value in named.items()})

    return run


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters: torch would swap fake ones, which their weak references forbid."""
    for child in module.children():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


class _Generator(torch.Generator):
    """Nothing is drawn on the device, so any generator will do."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)


_REGISTERED = _register()
"""At import, so before any test: torch counts devices at the first backward of a process and never again."""
