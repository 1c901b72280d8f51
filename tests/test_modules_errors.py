"""Every constructor and forward error of torch.nn's layers: same type, same text. Clear ones where torch has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, initial, outcome, pair, rand
from torch import nn

import fusedrnn

each_layer = pytest.mark.parametrize("name", LAYERS)

CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no sizes": ((), {}),
    "one size": ((4,), {}),
    "unknown keyword": ((4, 6), {"depth": 2}),
    "size twice": ((4, 6), {"input_size": 4}),
    "dropout above 1": ((4, 6, 2), {"dropout": 1.5}),
    "dropout below 0": ((4, 6, 2), {"dropout": -0.1}),
    "dropout bool": ((4, 6, 2), {"dropout": True}),
    "dropout str": ((4, 6, 2), {"dropout": "half"}),
    "dropout numeric str": ((4, 6, 2), {"dropout": "0.5"}),
    "dropout None": ((4, 6, 2), {"dropout": None}),
    "bias int": ((4, 6), {"bias": 1}),
    "batch_first int": ((4, 6), {"batch_first": 1}),
    "input_size float": ((4.0, 6), {}),
    "input_size numpy": ((np.int64(4), 6), {}),
    "input_size 0": ((0, 6), {}),
    "hidden_size str": ((4, "6"), {}),
    "hidden_size 0": ((4, 0), {}),
    "hidden_size -1": ((4, -1), {}),
    "num_layers 0": ((4, 6, 0), {}),
    "num_layers -2": ((4, 6, -2), {}),
    "num_layers str": ((4, 6, "2"), {}),
    "proj_size -1": ((4, 6), {"proj_size": -1}),
    "proj_size = hidden_size": ((4, 6), {"proj_size": 6}),
    "proj_size 0": ((4, 6), {"proj_size": 0}),
    "nonlinearity": ((4, 6), {"nonlinearity": "sigmoid"}),
    "nonlinearity by position": ((4, 6, 1, "sigmoid"), {}),
    "nonlinearity twice": ((4, 6, 1, "tanh"), {"nonlinearity": "relu"}),
    "unknown dtype": ((4, 6), {"dtype": "float"}),
    "integer dtype": ((4, 6), {"dtype": torch.long}),
    "unknown device": ((4, 6), {"device": "nowhere"}),
}


@each_layer
@pytest.mark.parametrize("case", CONSTRUCTORS)
@pytest.mark.filterwarnings("ignore:dropout option")
def test_constructor_errors_are_torchs(name: str, case: str) -> None:
    args, kwargs = CONSTRUCTORS[case]
    expected = outcome(lambda: getattr(nn, name)(*args, **kwargs))
    assert outcome(lambda: getattr(fusedrnn, name)(*args, **kwargs)) == expected


@pytest.mark.parametrize("case", CONSTRUCTORS)
@pytest.mark.filterwarnings("ignore:dropout option")
def test_constructor_cases_are_errors(case: str) -> None:
    """For at least one of torch's layers, so that the test above compares more than None with None."""
    args, kwargs = CONSTRUCTORS[case]
    assert any(outcome(lambda name=name: getattr(nn, name)(*args, **kwargs)) for name in LAYERS)


@each_layer
def test_too_many_positional_arguments(name: str) -> None:
    args = (
        4,
        6,
        1,
        *("tanh",) * (name == "RNN"),
        True,
        False,
        0.0,
        False,
        *(0,) * (name == "LSTM"),
        "cpu",
        torch.float32,
        None,
        None,
    )
    error, text = outcome(lambda: getattr(fusedrnn, name)(*args))
    assert error is TypeError
    assert text.startswith("RNNBase.__init__() takes from 4 to 12 positional arguments but 1")


@each_layer
def test_dropout_with_one_layer_warns_as_torch(name: str) -> None:
    texts = []
    for package in (nn, fusedrnn):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last") as caught:
            getattr(package, name)(4, 6, dropout=0.5)
        texts.append([str(w.message) for w in caught])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_proj_size_by_position_does_not_slip_through(name: str) -> None:
    """torch.nn takes it there and then fails at the first call."""
    args = (4, 6, 1, *("tanh",) * (name == "RNN"), True, False, 0.0, False, 2)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        getattr(fusedrnn, name)(*args)


@each_layer
def test_unknown_backend(name: str) -> None:
    layer = getattr(fusedrnn, name)(4, 6)
    with pytest.raises(ValueError, match=r"warp.*reference"):
        getattr(fusedrnn, name)(4, 6, backend="warp")
    with pytest.raises(ValueError, match=r"warp.*reference"):
        layer.backend = "warp"
    assert layer.backend == "auto"


def sized(*size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    return torch.ones(size, dtype=dtype, device=device)


def hx(*sizes: tuple[int, ...], **kwargs: Any) -> Any:
    """h_0 of the first size; the LSTM's pair takes the second for c_0, or the first again."""
    return lambda name: (
        (sized(*sizes[0], **kwargs), sized(*sizes[-1], **kwargs)) if name == "LSTM" else sized(*sizes[0], **kwargs)
    )


FORWARDS: dict[str, tuple[Any, Any]] = {
    "input 0-D": (sized(), None),
    "input 1-D": (sized(I), None),
    "input 4-D": (sized(1, T, B, I), None),
    "input None": (None, None),
    "input list": ([1.0], None),
    "input double": (sized(T, B, I, dtype=torch.double), None),
    "input half": (sized(T, B, I, dtype=torch.half), None),
    "input long": (sized(T, B, I, dtype=torch.long), None),
    "input size": (sized(T, B, I + 1), None),
    "input size unbatched": (sized(T, I + 1), None),
    "input double of wrong size": (sized(T, B, I + 1, dtype=torch.double), None),
    "no steps": (sized(0, B, I), None),
    "no steps unbatched": (sized(0, I), None),
    "input on meta": (sized(T, B, I, device="meta"), None),
    "hx rank 2": (sized(T, B, I), hx((B, H))),
    "hx rank 4": (sized(T, B, I), hx((1, 1, B, H))),
    "hx rank 3 unbatched": (sized(T, I), hx((1, 1, H))),
    "hx rank 1 unbatched": (sized(T, I), hx((H,))),
    "hx layers": (sized(T, B, I), hx((2, B, H))),
    "hx batch": (sized(T, B, I), hx((1, B + 1, H))),
    "hx features": (sized(T, B, I), hx((1, B, H + 1))),
    "hx features unbatched": (sized(T, I), hx((1, H + 1))),
    "hx of wrong size and input of wrong size": (sized(T, B, I + 1), hx((1, B, H + 1))),
    "hx on meta": (sized(T, B, I), hx((1, B, H), device="meta")),
}


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", FORWARDS)
def test_forward_errors_are_torchs(name: str, batch_first: bool, case: str) -> None:
    stock, ours = pair(name, batch_first=batch_first, dtype=torch.float)
    x, make = FORWARDS[case]
    if batch_first and isinstance(x, torch.Tensor) and x.dim() == 3:
        x = x.transpose(0, 1)
    given = None if make is None else make(name)
    expected = outcome(lambda: stock(x, given))
    assert expected is not None
    assert outcome(lambda: ours(x, given)) == expected


PAIRS = {
    "h_0 layers": ((2, B, H), (1, B, H)),
    "c_0 features": ((1, B, H), (1, B, H + 1)),
    "c_0 rank": ((1, B, H), (B, H)),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_errors_of_either_state_are_torchs(case: str, proj_size: int) -> None:
    stock, ours = pair("LSTM", proj_size=proj_size, dtype=torch.float)
    given = tuple(sized(*size) for size in PAIRS[case])
    expected = outcome(lambda: stock(sized(T, B, I), given))
    assert expected is not None
    assert outcome(lambda: ours(sized(T, B, I), given)) == expected


@pytest.mark.parametrize("given", [(sized(1, B, H),) * 3, [sized(1, B, H)] * 3], ids=["tuple", "list"])
def test_three_states_are_torchs_error(given: Any) -> None:
    stock, ours = pair("LSTM", dtype=torch.float)
    expected = outcome(lambda: stock(sized(T, B, I), given))
    assert expected is not None
    assert outcome(lambda: ours(sized(T, B, I), given)) == expected


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_tuple_for_one_state_is_torchs_error(name: str) -> None:
    stock, ours = pair(name, dtype=torch.float)
    given = (sized(1, B, H),)
    assert outcome(lambda: ours(sized(T, B, I), given)) == outcome(lambda: stock(sized(T, B, I), given)) is not None


def test_a_tensor_for_two_states() -> None:
    """torch indexes it, and complains of an index or of an op's argument."""
    with pytest.raises(TypeError, match=r"hx to be a tuple \(h_0, c_0\), got Tensor"):
        pair("LSTM", dtype=torch.float)[1](sized(T, B, I), sized(2, 1, B, H))


@each_layer
@pytest.mark.parametrize("dtype", [torch.double, torch.long])
def test_hx_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    """torch: whatever the kernel says that meets it, 'mat1 and mat2', 'get_mkldnn_dtype: unsupported data type'."""
    with pytest.raises(ValueError, match=rf"{name}: Expected hx of the input's dtype torch.float32, got {dtype}"):
        pair(name, dtype=torch.float)[1](sized(T, B, I), hx((1, B, H), dtype=dtype)(name))


@each_layer
def test_lengths_and_reset_of_wrong_kind(name: str) -> None:
    layer, x = pair(name, batch_first=True, dtype=torch.float)[1], sized(B, T, I)
    with pytest.raises(TypeError, match=r"lengths: Expected a Tensor, got list"):
        layer(x, lengths=[1, 2, 3])
    with pytest.raises(ValueError, match=r"lengths: Expected size \(1,\), one a row, got \[3\]"):
        layer(x[0], lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"reset: Expected size \(6,\), laid out as input, got \[6, 1\]"):
        layer(x[0], reset=torch.zeros(T, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"lengths: Expected integers, got torch.float32"):
        layer(x, lengths=torch.ones(B))
    with pytest.raises(ValueError, match=r"lengths: Expected size \(3,\)"):
        layer(x, lengths=torch.ones(B, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"reset: Expected torch.bool, got torch.float32"):
        layer(x, reset=torch.zeros(B, T))
    with pytest.raises(ValueError, match=r"reset: Expected size \(3, 6\), laid out as input, got \[6, 3\]"):
        layer(x, reset=torch.zeros(T, B, dtype=torch.bool))


@each_layer
def test_errors_leave_the_layer_usable(name: str) -> None:
    stock, ours = pair(name)
    x, given = rand(T, B, I), initial(stock)
    assert outcome(lambda: ours(x[..., :-1], given)) is not None
    assert_same([ours(x, given)[0]], [stock(x, given)[0]])
