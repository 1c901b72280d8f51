"""What a model costs by its layers alone: parameters, products, least traffic, products that wait for one another.

The same on every machine. A recurrent model is counted on torch's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .models import beyond_embeddings, encoder_parameters

WORD_BYTES = 4


def parameters(model: nn.Module) -> int:
    """Parameters without embeddings."""
    return sum(parameter.numel() for _, parameter in beyond_embeddings(model))


def products(model: nn.Module, arguments: Sequence[Tensor | None]) -> int:
    """Multiplications in the matrix products of one forward pass: half of its FLOP, as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention is not counted
        model(*arguments)
    return int(counter.get_total_flops()) // 2


def traffic(model: nn.Module, arguments: Sequence[Tensor | None]) -> int:
    """Bytes of one forward pass in float32: each weight once, each layer's input and output once, of a table the rows
    looked up."""
    words = [parameters(model)]

    def note(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        x, y = given[0], result[0] if isinstance(result, tuple) else result
        words.append(y.numel() + (0 if isinstance(module, nn.Embedding) else x.numel()))

    handles = [
        module.register_forward_hook(note) for module in model.modules() if list(module.parameters(recurse=False))
    ]
    model(*arguments)
    for handle in handles:
        handle.remove()
    return WORD_BYTES * sum(words)


def counts(model: nn.Module, arguments: Any, steps: int) -> dict[str, int]:
    """All of a model of the text studies; `arguments(steps)` is one row of so many steps. The model is used up."""
    # oneDNN's layers and the Transformer's short cut in inference are no operations that torch counts: float64 has
    # neither with gradients on
    model.double()
    of = partial(products, model)
    return {
        "parameters_encoder": encoder_parameters(model),
        "parameters": parameters(model),
        "products": of(arguments(steps)),
        "products_a_step": of(arguments(40)) - of(arguments(39)),
        "flop": 2 * of(arguments(steps)),
        "bytes": traffic(model, arguments(steps)),
        "serial_products": model.serial(steps),
    }
