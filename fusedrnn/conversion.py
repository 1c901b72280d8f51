"""What `convert` did to a model: every recurrent layer and cell in it, what became of it, and why one was left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Converted:
    """One layer or cell.

    Attributes:
        name: as of `model.named_modules()`; "" for the model itself.
        before: its class, as it was.
        after: its class since; None if it was left as it was.
        why: why it was left; "" if it was not.
    """

    name: str
    before: str
    after: str | None
    why: str = ""

    def __str__(self) -> str:
        fate = f"left: {self.why}" if self.after is None else f"-> {self.after}"
        return f"{self.name or '(the model)'}: {self.before} {fate}"


class Conversion(tuple[Converted, ...]):
    """The layers and cells of a model, in the order of `model.modules()`; as a str a line each."""

    __slots__ = ()

    @property
    def replaced(self) -> list[Converted]:
        """Those that became this package's."""
        return [one for one in self if one.after is not None]

    @property
    def left(self) -> list[Converted]:
        """Those that were left as they were."""
        return [one for one in self if one.after is None]

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced, {len(self.left)} left"
        return "\n".join([f"convert: {counts}", *(f"  {one}" for one in self)])


def class_name(cls: type) -> str:
    """Of torch's own and ours by the package they are imported from, of others in full."""
    package = next(
        (p for p in ("torch.nn", "fusedrnn") if cls.__module__.startswith((f"{p}.modules", f"{p}.cells"))),
        cls.__module__,
    )
    return f"{package}.{cls.__qualname__}"


_NAMES = ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell")


def why_left(module: nn.Module, ours: tuple[type[nn.Module], ...]) -> str | None:
    """Why a module that is not of torch's plain classes stays as it is; None if it is not recurrent at all."""
    cls = type(module)
    if isinstance(module, ours):
        return "it is this package's already"
    if cls.__module__.startswith("torch.ao.nn.quantiz") and any(base.__name__ in _NAMES for base in cls.__mro__):
        return "its weights are quantized, or about to be"
    scripted = module.original_name if isinstance(module, torch.jit.ScriptModule) else None
    if scripted in _NAMES:
        return f"it is an nn.{scripted} that TorchScript has compiled: convert first, then script"
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return None
    if any(base.__name__ == "FSDPModule" for base in cls.__mro__):
        return "FSDP2 has given it a class of its own: convert first, then shard"
    return "its class derives from torch's, and its code may rely on what that does: derive it from fusedrnn's"
