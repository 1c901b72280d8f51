"""`beyond`: tasks that compute the same or are refused, rows taken up where they ended, and what is not as wanted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import beyond, demands
from benchmarks.cases import Case
from benchmarks.record import measured, read_rows

SMALL = {"T": 5, "B": 3, "I": 4, "H": 6}


def small(demand: demands.Demand) -> demands.Demand:
    cells = dict.fromkeys(case.cell for case in demand.cases)
    return dataclasses.replace(demand, cases=[Case(cell, **SMALL) for cell in cells])


@pytest.mark.parametrize("demand", demands.DEMANDS, ids=lambda demand: demand.name)
def test_every_task_of_a_demand_computes_what_torch_does(demand):
    names = set(demands.tasks(demand, Case("gru", **SMALL)))
    assert names >= {side for want in demand.wants for side in (want.above, want.below)}
    for case in small(demand).cases:
        assert beyond.refused(demand, case) is None


def test_a_wrong_task_is_refused_by_name():
    demand = demands.DEMANDS[1]

    def spoilt(*args):
        made = demand.build(*args)
        right = made["cells"]
        return made | {"cells": lambda: {name: value * 1.001 for name, value in right().items()}}

    reason = beyond.refused(dataclasses.replace(demand, build=spoilt), Case("gru", **SMALL))
    assert reason is not None
    assert reason.startswith("cells: weight_ih_l0")


def test_rows_are_taken_up_where_they_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(beyond, "DEMANDS", [small(demand) for demand in demands.DEMANDS])
    asked = []

    def alternate(tasks, budget_s):
        asked.append(list(tasks))
        return {name: [1.0, 1.0] for name in tasks}

    monkeypatch.setattr(beyond, "alternate", alternate)
    assert command.main(["beyond", "--out", str(tmp_path)]) == 0
    first, rows = len(asked), read_rows(tmp_path / "beyond.csv")
    assert first == sum(len(demand.cases) for demand in beyond.DEMANDS)
    assert command.main(["beyond", "--out", str(tmp_path)]) == 0
    assert len(asked) == first
    assert read_rows(tmp_path / "beyond.csv") == rows
    out = capsys.readouterr().out
    assert "nn-rows / vmap at least 3 missed at 2 of 2" in out
    assert "fusedrnn / nn at most 2 missed at 0 of 3" in out
    assert "| **1.00 (1.00-1.00)** |" in out
    assert (tmp_path / "beyond.env.json").exists()


def test_bytes_kept_beside_what_is_wanted():
    demand = next(d for d in demands.DEMANDS if d.build is demands.rebuilt)
    case, where = Case("gru", **SMALL), {"mode": demand.name, "threads": torch.get_num_threads()}
    rows = [measured("beyond", "time", "ms", [2.0], case, provider=name, **where) for name in ("gates", "recompute")]
    rows.append(measured("beyond", "kept", "recompute/gates", [0.4], case, provider="gates", **where))
    rows.append(measured("beyond", "ratio", "recompute/gates", [1.0], case, provider="gates", **where))
    assert "| 1.00 (1.00-1.00) | **0.40** |" in beyond.markdown(rows)
