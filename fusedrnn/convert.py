"""torch.nn's recurrent layers and cells to this package's and back, in place: the objects stay, their class changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from . import backends, cells, modules
from .conversion import Conversion, Converted, class_name, why_left
from .standin import OWN_ATTRIBUTES, regularisers

Model = TypeVar("Model", bound=nn.Module)

_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.GRU: modules.GRU,
    nn.LSTM: modules.LSTM,
    nn.RNN: modules.RNN,
    nn.GRUCell: cells.GRUCell,
    nn.LSTMCell: cells.LSTMCell,
    nn.RNNCell: cells.RNNCell,
}
_STOCK = {fused: stock for stock, fused in _FUSED.items()}


def convert(model: Model, *, backend: str = "auto", report: Callable[[Conversion], object] | None = None) -> Model:
    """Makes every nn.GRU, LSTM, RNN, GRUCell, LSTMCell and RNNCell in `model`, itself included, one of this package's.

    In place, and as little as can be: each layer stays the object it was, with its Parameters (optimizers stay valid),
    hooks, training flag, parametrizations and weight norm; only its class becomes another. A class of the user's own
    that derives from torch's is left alone, since its code may rely on what it derives from; so is a layer to which a
    wrapper has given a class of its own (FSDP2: convert first, then shard).

    Args:
        model: any module.
        backend: what the `backend` of every converted layer is set to.
        report: called at the end with what was replaced, what was left and why: `report=print` shows it.

    Returns:
        model.

    Raises:
        TypeError: model is not a module, or report cannot be called.
        ValueError: backend is unknown. Nothing has been converted after either.
    """
    backends.check_name(backend)
    if report is not None and not callable(report):
        raise TypeError(f"convert: report: expected a function, such as print, got {type(report).__name__}")
    told = []
    for name, module in _modules(model, "convert"):
        before = class_name(_plain(module))
        if _change_class(module, _FUSED):
            module.backend = backend  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):
                module.recompute = False
            told.append(Converted(name, before, class_name(_plain(module))))
        elif (why := why_left(module, tuple(_STOCK))) is not None:
            told.append(Converted(name, before, None, why))
    if report is not None:
        report(Conversion(told))
    return model


def revert(model: Model) -> Model:
    """Undoes `convert`: every layer and cell of this package in `model`, itself included, becomes torch's, in place.

    `backend` and `recompute` are forgotten. Layers built as this package's are reverted too:
    `revert(copy.deepcopy(model))` is the model in torch's own layers, for whatever tool wants those.

    Raises:
        TypeError: model is not a module.
        ValueError: a layer has zoneout, recurrent_dropout, weight_dropout or layer_norm, which torch's have not;
            nothing has been reverted then.
    """
    found = [(name, module) for name, module in _modules(model, "revert") if _target(module, _STOCK) is not None]
    for name, module in found:
        which = f"{_plain(module).__name__} {name!r}" if name else f"the {_plain(module).__name__}"
        if getattr(module, "layer_norm", False):
            raise ValueError(
                f"revert: {which} has layer_norm, which torch's layers have not, nor its Parameters. Leave it out of "
                "the model that is reverted"
            )
        if options := regularisers(module):
            raise ValueError(
                f"revert: {which} has {', '.join(options)}, which torch's layers have not: what it computes would "
                "change. Set it to 0 first"
            )
    for _, module in found:
        _change_class(module, _STOCK)
        for own in OWN_ATTRIBUTES:
            module.__dict__.pop(own, None)
        if isinstance(module, nn.RNNBase):
            module._update_flat_weights()
            module.flatten_parameters()
    return model


def _modules(model: nn.Module, verb: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{verb}: expected a torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())


def _change_class(module: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> bool:
    """Replaces the class of `module`, if the table has it; below a parametrization's class, if it wears one."""
    target, cls = _target(module, table), type(module)
    if target is None:
        return False
    # Of a parametrized one: the class made for this one object, a property for each parametrized tensor.
    module.__class__ = target if cls in table else type(cls.__name__, (target,), dict(cls.__dict__))
    return True


def _target(module: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    """The class that the table has for `module`."""
    return table.get(type(module) if type(module) in table else _plain(module))


def _plain(module: nn.Module) -> type[nn.Module]:
    """A module's class; where it wears a parametrization's, the one that derives from."""
    cls: type[nn.Module] = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls
