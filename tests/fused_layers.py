"""What holds for whole layers on every backend with fused kernels for GPUs, whoever runs them on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bare import B, Bare, T, gradients, initial, label
from close import assert_same
from test_functional import results
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import ops, packed
from fusedrnn.spec import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec

DOUBLE = torch.double
LENGTHS = [3, 6, 1, 6]


class FusedLayers:
    """Tests for a backend: a subclass whose name begins with Test names it."""

    backend: str
    fast = False  # whether finite differences are taken along one direction alone

    @pytest.mark.parametrize("H", [1, 8, 13])
    @pytest.mark.parametrize(
        "how",
        [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "bias": False}, {"recompute": True}],
        ids=label,
    )
    def test_equals_torch(self, cell: CellSpec, how: dict[str, Any], H: int) -> None:
        layer = Bare(cell, 5, H, backend=self.backend, **how).double()
        x, hx = torch.randn(T, B, 5, dtype=DOUBLE, requires_grad=True), initial(layer, requires_grad=True)
        found, want = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
        assert_same(list(found.values()), list(want.values()))
        with torch.no_grad():
            assert_same(layer(x), layer.twin()(x))
        assert all(t.is_contiguous() for t in layer(x))

    @pytest.mark.parametrize("recompute", [False, True])
    def test_masks_equal_the_references(self, cell: CellSpec, recompute: bool) -> None:
        layer = Bare(cell, 5, 11, num_layers=2, bidirectional=True, backend=self.backend, recompute=recompute).double()
        x, hx = torch.randn(T, B, 5, dtype=DOUBLE, requires_grad=True), initial(layer, requires_grad=True)
        lengths, reset = torch.tensor([6, 0, 4]), torch.rand(T, B) < 0.3

        def run() -> list[Tensor]:
            out = layer(x, lengths, reset, hx)
            return [*out, *gradients(out, [x, *hx, *layer.parameters()])]

        found = run()
        layer.backend = "reference"
        assert_same(found, run())

    def test_second_derivatives(self, cell: CellSpec) -> None:
        layer = Bare(cell, 2, 3, backend=self.backend, bidirectional=True).double()
        x, hx = torch.randn(3, 2, 2, dtype=DOUBLE, requires_grad=True), initial(layer, 2, requires_grad=True)
        weights = list(layer.parameters())

        def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            return layer(x, None, None, rest[: len(hx)])

        assert torch.autograd.gradcheck(run, (x, *hx), fast_mode=self.fast)
        assert torch.autograd.gradgradcheck(run, (x, *hx), fast_mode=True)
        penalty = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)[0].square().sum()
        found = torch.autograd.grad(penalty, weights)
        layer.backend = "reference"
        penalty = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)[0].square().sum()
        assert_same(found, torch.autograd.grad(penalty, weights))

    def test_per_sample_gradients_and_ensembles(self) -> None:
        layer = Bare(GRU, 4, 8, backend=self.backend).double()
        names = [name for name, _ in layer.named_parameters()]
        x = torch.randn(3, 5, 1, 4, dtype=DOUBLE)

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

        weights = dict(layer.named_parameters())
        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        for i in range(3):
            want = torch.autograd.grad(loss(weights, x[i]), list(weights.values()))
            assert_same([found[name][i] for name in names], want)

    def test_a_step_of_one_row_and_no_rows(self) -> None:
        for spec in (GRU, LSTM, RNN_TANH, RNN_RELU):
            layer = Bare(spec, 3, 5, backend=self.backend).double()
            x = torch.randn(1, 1, 3, dtype=DOUBLE)
            assert_same(layer(x), layer.twin()(x))
            y, *last = layer(x[:, :0])
            assert (y.shape, last[0].shape) == ((1, 0, 5), (1, 0, 5))

    @pytest.mark.parametrize("H", [8, 5])
    @pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=label)
    def test_packed_rows_equal_torch(self, cell: CellSpec, how: dict[str, Any], H: int) -> None:
        kind = {"GRU": fusedrnn.GRU, "LSTM": fusedrnn.LSTM}.get(cell.mode, fusedrnn.RNN)
        own = {"nonlinearity": cell.mode[4:].lower()} if cell.mode.startswith("RNN") else {}
        layer = kind(4, H, **how, **own, backend=self.backend).double()
        theirs = fusedrnn.revert(copy.deepcopy(layer))
        x = torch.randn(sum(LENGTHS), 4, dtype=DOUBLE, requires_grad=True)
        states = [
            torch.randn(layer.num_layers * (2 if layer.bidirectional else 1), 4, H, dtype=DOUBLE) for _ in range(2)
        ]
        hx = [s.requires_grad_() for s in states[: len(cell.states)]]

        def run(layer: Any, given: bool) -> list[Tensor]:
            sequences = pack_sequence(list(x.split(LENGTHS)), enforce_sorted=False)
            state = (tuple(hx) if cell is LSTM else hx[0]) if given else None
            y, last = layer(sequences, state)
            out = [y.data, *(last if cell is LSTM else (last,))]
            return [*out, *gradients(out, [x, *(hx if given else []), *layer.parameters()])]

        for given in (False, True):
            assert_same(run(layer, given), run(theirs, given))
        with torch.no_grad():
            sequences = pack_sequence(list(x.split(LENGTHS)), enforce_sorted=False)
            assert_same([layer(sequences)[0].data], [theirs(sequences)[0].data])

    def test_packed_rows_are_not_padded_and_have_second_derivatives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = fusedrnn.GRU(4, 8, bidirectional=True, backend=self.backend).double()
        x = torch.randn(sum(LENGTHS), 4, dtype=DOUBLE, requires_grad=True)

        def penalty() -> Tensor:
            y = layer(pack_sequence(list(x.split(LENGTHS)), enforce_sorted=False))[0].data
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            return g.square().sum()

        found = torch.autograd.grad(penalty(), list(layer.parameters()))
        layer.backend = "reference"
        assert_same(found, torch.autograd.grad(penalty(), list(layer.parameters())))

        layer.backend = self.backend
        monkeypatch.setattr(packed.Grid, "pad", None)
        layer(pack_sequence(list(x.split(LENGTHS)), enforce_sorted=False))[0].data.sum().backward()

    def test_packed_rows_keep_gates_for_backward_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, saved = fusedrnn.LSTM(4, 8, backend=self.backend), []
        scan_for = ops.scan_for

        def watched(route: int) -> Any:
            def run(*given: Any, **more: Any) -> Any:
                out = scan_for(route)(*given, **more)
                saved.append(out[2].numel() > 0)
                return out

            return run

        monkeypatch.setattr(ops, "scan_for", watched)
        rows = pack_sequence(list(torch.randn(sum(LENGTHS), 4).split(LENGTHS)), enforce_sorted=False)
        layer(rows)
        with torch.no_grad():
            layer(rows)
        assert saved == [True, False]

    def test_packed_gradients_do_not_feel_autocast(self) -> None:
        layer = fusedrnn.GRU(4, 8, backend=self.backend)
        x = torch.randn(sum(LENGTHS), 4, requires_grad=True)
        found = []
        for enabled in (False, True):
            y = layer(pack_sequence(list(x.split(LENGTHS)), enforce_sorted=False))[0].data
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(torch.autograd.grad(y.sum(), [layer.weight_hh_l0, layer.bias_hh_l0]))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_packed_output_may_be_changed_in_place(self) -> None:
        layer = fusedrnn.GRU(4, 8, backend=self.backend)
        y = layer(pack_sequence([torch.randn(3, 4), torch.randn(2, 4)]))[0].data
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
