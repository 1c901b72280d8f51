"""DDP and FSDP2 over two processes (gloo, CPU): training steps as in one process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from close import assert_same
from pairs import needs_kernel
from torch import Tensor, nn

import fusedrnn

pytestmark = [
    pytest.mark.slow,
    needs_kernel,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]
T, B, I, H, STEPS = 5, 4, 3, 6, 3


class Model(nn.Module):
    """Every layer, one of them with recompute, one with two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(I, H, bidirectional=True)
        self.lstm = nn.LSTM(2 * H, H, num_layers=2)
        self.rnn = nn.RNN(H, H)
        self.double()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.lstm(self.gru(x, lengths=lengths)[0])[0]
        return self.rnn(y)[0].square().mean()


def made() -> tuple[Model, Tensor, Tensor]:
    torch.manual_seed(0)
    model = fusedrnn.convert(Model())
    model.lstm.recompute = True
    return model, torch.randn(STEPS, T, B, I, dtype=torch.double), torch.randint(1, T + 1, (STEPS, B))


def trained(model: Any, x: Tensor, lengths: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for inputs, n in zip(x, lengths, strict=True):
        optimizer.zero_grad()
        model(inputs, n).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def work(rank: int, kind: str, port: int, folder: str) -> None:
    """Half of the rows each: the mean of the halves' gradients is that of the whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, x, lengths = made()
    half = slice(rank * B // 2, (rank + 1) * B // 2)
    if kind == "ddp":
        wrapped: Any = nn.parallel.DistributedDataParallel(model)
        found = trained(wrapped, x[:, :, half], lengths[:, half])
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        found = [p.full_tensor() for p in trained(fully_shard(model, mesh=mesh), x[:, :, half], lengths[:, half])]
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()  # the first to leave takes the store along: on a loaded machine the other was seen to abort
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_steps_equal_those_of_one_process(kind: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (kind, port, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    model, x, lengths = made()
    before = [p.detach().clone() for p in model.parameters()]
    want = trained(model, x, lengths)
    assert not any(torch.equal(a, b) for a, b in zip(before, want, strict=True))
    assert_same(found, want)
