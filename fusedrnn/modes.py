"""What stands around a call: plain eager mode, or autocast, compilation, torch.func, forward mode. A leaf."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Answer = TypeVar("Answer")
Class = TypeVar("Class", bound=type)

_OLDER_VMAP = torch._C._dispatch_key_parse("VmapMode")


def constant(function: Callable[[], Answer]) -> Callable[[], Answer]:
    """Marks what dynamo shall run as it is, and take the answer of.

    That is torch.compiler.assume_constant_result, which imports dynamo, a second, for those who never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def traced() -> bool:
    """Whether anything but plain eager mode stands around: compile, export, forward mode or torch.func."""
    # in this order: dynamo, which can evaluate neither of the others, reads no further than the first
    return (
        torch.compiler.is_compiling() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    )


def opaque(function: Class) -> Class:
    """Marks a Function for dynamo to take as it is: torch.compiler.allow_in_graph, put off until there is a dynamo."""
    _opaque.append(function)
    return function


_opaque: list[Any] = []


@constant
def forward_mode() -> bool:
    """Whether tangents may be attached. func.jvp opens a dual level too. Private: torch has no other word for it."""
    return forward_ad._current_level >= 0


@constant
def transformed() -> bool:
    """Whether torch.func stands between us and the tensors. Private, but all of torch.func hangs on it."""
    # dynamo runs this as it is, and before it meets any Function that it shall take so
    if _opaque and "torch._dynamo" in sys.modules:
        for function in tuple(_opaque):
            torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]
        _opaque.clear()
    return torch._C._are_functorch_transforms_active()


def maps_gradients() -> bool:
    """Whether torch's older vmap is on, as in autograd.grad(is_grads_batched=True): ops that take lists fail there."""
    return torch._C._dispatch_tls_is_dispatch_key_included(_OLDER_VMAP)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the tensor's device; None if it is off."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off where it is on: what is computed inside has the dtypes of what it is computed from."""
    return nullcontext() if autocast_dtype(tensor) is None else torch.autocast(tensor.device.type, enabled=False)
