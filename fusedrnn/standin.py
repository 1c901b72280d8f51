"""What layers and cells share in standing in for torch's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import backends, modes

REGULARISERS = ("zoneout", "recurrent_dropout", "weight_dropout")
"""What is 0 in torch's layers, and changes what a layer computes where it is not."""

OWN_ATTRIBUTES = ("backend", "recompute", "bptt", *REGULARISERS)
"""What torch's layers and cells have not."""


class StandIn(nn.Module):
    """Takes the place of `_stock`, over the same Parameters; among a class's bases, before torch's."""

    _stock: ClassVar[Any]
    backend: str

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backend":
            backends.check_name(value)
        super().__setattr__(name, value)

    def _read(self, names: Sequence[str]) -> list[Tensor]:
        """Weights by name at every call: functional_call, parametrizations, weight norm and replicas swap them."""
        own = self._parameters
        if not torch.compiler.is_compiling() and self.__dict__.keys().isdisjoint(names):
            try:  # a fifth of the time of getattr, which nn.Module answers in Python
                return [own[name] for name in names]  # type: ignore[misc]
            except KeyError:
                pass
        return [getattr(self, name) for name in names]

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in our place."""
        twin = copy.copy(self)
        for name in OWN_ATTRIBUTES:
            twin.__dict__.pop(name, None)
        twin.__class__ = self._stock
        return twin


def regularisers(module: nn.Module) -> list[str]:
    """Which of REGULARISERS a layer has."""
    rates = {name: getattr(module, name, 0.0) for name in REGULARISERS}
    return [name for name, rate in rates.items() if (any(rate) if isinstance(rate, Sequence) else rate)]


def torchscript_traces() -> bool:
    """Whether torch.jit.trace is what runs us."""
    return torch._C._get_tracing_state() is not None  # torch.jit.is_tracing takes twenty times as long


def onnx_exports() -> bool:
    """Whether torch.onnx.export is what traces us."""
    return torch.compiler.is_exporting() and _in_onnx_export()


@modes.constant
def _in_onnx_export() -> bool:
    # asked of torch directly, dynamo answers no without looking
    return torch.onnx.is_in_onnx_export()
