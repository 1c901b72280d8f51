"""What the CPU kernel's ops refuse, for whoever calls them directly."""

from __future__ import annotations

import pytest
import torch

from fusedrnn import ops

pytestmark = pytest.mark.skipif(ops.missing is not None, reason=f"needs the compiled ops: {ops.missing}")

REFUSED = [
    ({"reset_h": torch.zeros(1)}, "reset_h is reserved"),
    ({"reset_c": torch.zeros(1)}, "reset_c is reserved"),
    ({"offsets": torch.zeros(1)}, "offsets is reserved"),
    ({"rates": [0.5]}, "rates: expected those of zoneout of h, zoneout of c and recurrent dropout, or none, got 1"),
    ({"rates": [0.5, 0.0, 1.5]}, "rates: expected probabilities, got 1.5"),
    ({"rates": [0.5, 0.0, float("nan")]}, "rates: expected probabilities"),
    ({"rates": [0.5, 0.5, 0.0]}, "only the LSTM has a c"),
    ({"rates": [0.5, 0.0, 0.5]}, "recurrent dropout is drawn by a mask_key"),
    ({"rates": [0.5, 0.0, 0.0], "mask_key": torch.zeros(3, dtype=torch.int64)}, r"mask_key: expected \[2\], got \[3\]"),
    ({"rates": [0.5, 0.0, 0.0], "mask_key": torch.zeros(2)}, "mask_key: expected int64"),
    ({"cell": 7}, "cell: expected 0"),
    ({"directions": 3}, "directions: expected 1 or 2"),
    ({"directions": 2}, "expected a multiple of 2 streams"),
    ({"h0": torch.zeros(1, 2, 5)}, r"h0: expected \[1, 3, 4\], got \[1, 2, 5\]"),
    ({"h0": torch.zeros(1, 3, 4, dtype=torch.float64)}, "h0: expected the dtype"),
    ({"c0": torch.zeros(1, 3, 4)}, "c0 is for the LSTM only"),
    ({"lengths": torch.zeros(1, 3)}, "lengths: expected int64"),
    ({"lengths": torch.zeros(2, 3, dtype=torch.int64)}, r"lengths: expected \[1, 3\]"),
    ({"reset": torch.zeros(2, 3, 1)}, "reset: expected bool"),
    ({"gates_x": torch.zeros(2, 3, 1, 12, dtype=torch.float16)}, "float32, float64 and bfloat16"),
    ({"gates_x": torch.zeros(0, 3, 1, 12)}, "expected at least one step"),
    ({"gates_x": torch.zeros(2, 3, 0, 12), "weight_hh": torch.zeros(0, 12, 4)}, "expected at least one stream"),
    ({"gates_x": torch.zeros(2, 3, 1, 0), "weight_hh": torch.zeros(1, 0, 0)}, "one hidden unit"),
]


@pytest.mark.parametrize(("change", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_scan_refuses(change: dict[str, object], text: str) -> None:
    call: dict[str, object] = {
        "gates_x": torch.zeros(2, 3, 1, 12),
        "h0": None,
        "c0": None,
        "weight_hh": torch.zeros(1, 12, 4),
        "bias_hh": None,
        "lengths": None,
        "reset": None,
        "reset_h": None,
        "reset_c": None,
        "offsets": None,
        "mask_key": None,
        "rates": [],
        "cell": 0,
        "directions": 1,
        "save": False,
    }
    assert ops.scan(**call)[0].shape == (2, 3, 1, 4)
    with pytest.raises(RuntimeError, match=text):
        ops.scan(**{**call, **change})


def test_an_rnn_has_no_adjoint_of_zoneouts_mean() -> None:
    y, weight = torch.zeros(2, 3, 1, 4), torch.zeros(1, 4, 4)
    absent = [None] * 5
    for rates, key in (([0.5, 0.0, 0.0], torch.zeros(2, dtype=torch.int64)), ([0.0, 0.0, 0.0], None)):
        ops.scan_backward(
            *absent, torch.zeros(0), y, None, None, None, weight, None, None, 2, 1, mask_key=key, rates=rates
        )
    with pytest.raises(RuntimeError, match="cannot be had from its output alone"):
        ops.scan_backward(*absent, torch.zeros(0), y, None, None, None, weight, None, None, 2, 1, rates=[0.5, 0.0, 0.0])


def test_layer_refuses_what_does_not_fit() -> None:
    weights = [torch.zeros(12, 5), torch.zeros(12, 4)]
    for x, given, text in (
        (torch.zeros(2, 3, 6), weights, r"w_ih: expected \[12, 6\], got \[12, 5\]"),
        (torch.zeros(2, 3, 5), weights[:1] * 3, "expected 2 weights a direction, got 3"),
        (torch.zeros(2, 3, 5), [weights[0].double(), weights[1]], "w_ih: expected the dtype"),
        (torch.zeros(3, 5), weights, r"expected x \[T, B, I\]"),
        (torch.zeros(0, 3, 5), weights, "expected at least one step"),
        (torch.zeros(2, 3, 5), [torch.zeros(0, 5), torch.zeros(0, 0)], "expected at least one hidden unit"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ops.layer(x, None, None, given, None, None, 0, False, False, False)


def test_schemas_in_both_texts_are_the_same() -> None:
    for schema in ops.SCHEMAS:
        name = schema.partition("(")[0]
        assert str(getattr(torch.ops.fusedrnn, name).default._schema) == str(
            torch._C.parse_schema(f"fusedrnn::{schema}")
        )
