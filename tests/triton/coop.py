"""Runs kernels whose programs wait for each other in Triton's interpreter.

Every program gets a thread. One thread holds the baton, which moves at every atomic operation and, with `at_memory`,
at every load and store, in a seeded random order: so loops that wait make progress, interleavings change with the seed,
and a deadlock is found. Memory is sequentially consistent here, so that a missing fence is not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime import interpreter

builder = interpreter.interpreter_builder


class Deadlock(RuntimeError):
    """All programs wait."""


class Baton:
    """Who runs. `max_idle`: polls in a row, with nothing stored between them, that are taken for a deadlock."""

    def __init__(self, seed: int, at_memory: bool, max_idle: int) -> None:
        self.random, self.at_memory, self.max_idle, self.active = random.Random(seed), at_memory, max_idle, False
        self.turn, self.mine = threading.Condition(), threading.local()
        self.most_programs = 0

    def run(self, function: Callable[..., Any], programs: list[tuple[Any, dict[str, Any]]]) -> None:
        """Runs programs, each given by its index in the grid and its arguments."""
        self.most_programs = max(self.most_programs, len(programs))
        self.index = [index for index, _ in programs]
        self.live, self.current, self.idle = list(range(len(programs))), -1, 0
        self.error: BaseException | None = None

        def body(i: int) -> None:
            self.mine.i = i
            try:
                self._wait(i)
                function(**programs[i][1])
            except BaseException as error:
                with self.turn:
                    self.error = self.error or error
            finally:
                with self.turn:
                    self.live.remove(i)
                    self.idle = 0
                    self._pass_on()

        threads = [threading.Thread(target=body, args=(i,), daemon=True) for i in self.live]
        self.active = True
        for thread in threads:
            thread.start()
        with self.turn:
            self._pass_on()
        for thread in threads:
            thread.join()
        self.active = False
        if self.error:
            raise self.error

    def offer(self, progress: bool) -> None:
        """Called by the program that runs: another may go on now."""
        if not self.active:
            return
        with self.turn:
            self.idle = 0 if progress else self.idle + 1
            if self.idle > self.max_idle:
                self.error = Deadlock(f"nothing stored in {self.max_idle} polls")
                self.turn.notify_all()
                raise self.error
            self._pass_on()
        self._wait(self.mine.i)

    def _pass_on(self) -> None:
        if self.live:
            self.current = self.random.choice(self.live)
            builder.grid_idx = self.index[self.current]
        self.turn.notify_all()

    def _wait(self, i: int) -> None:
        with self.turn:
            while self.current != i and not self.error:
                self.turn.wait()
            if self.error:
                raise self.error
            builder.grid_idx = self.index[i]


@contextmanager
def coop(seed: int = 0, at_memory: bool = False, max_idle: int = 20000) -> Iterator[Baton]:
    """Every launch inside runs all its programs at once."""
    baton = Baton(seed, at_memory, max_idle)
    names = ("create_atomic_rmw", "create_masked_store", "create_masked_load")
    plain = {name: getattr(builder, name) for name in names}
    plain_run = interpreter.InterpretedFunction.run

    def atomic(op: Any, pointer: Any, value: Any, *rest: Any) -> Any:
        result = plain["create_atomic_rmw"](op, pointer, value, *rest)
        baton.offer(bool((value.data != 0).any()))
        return result

    def store(*args: Any) -> Any:
        result = plain["create_masked_store"](*args)
        baton.idle = 0
        if baton.at_memory:
            baton.offer(True)
        return result

    def load(*args: Any) -> Any:
        result = plain["create_masked_load"](*args)
        if baton.at_memory:
            baton.offer(False)
        return result

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        function, programs = self.rewrite(), []

        def collect(arguments: dict[str, Any]) -> None:  # GridExecutor calls this once a program, in order
            programs.append((builder.grid_idx, arguments))
            x, y, z = builder.grid_dim
            if len(programs) == x * y * z:
                baton.run(function, programs)

        names = dict(function.__globals__, collect=collect)
        listed = ", ".join(self.arg_names)
        exec(f"def record({listed}): collect(dict({', '.join(f'{n}={n}' for n in self.arg_names)}))", names)
        record: Any = names["record"]
        record.__annotations__, record.__defaults__ = function.__annotations__, function.__defaults__
        return interpreter.GridExecutor(record, self.arg_names, grid, self.pre_run_hooks)(*args, **options)

    builder.create_atomic_rmw, builder.create_masked_store, builder.create_masked_load = atomic, store, load
    interpreter.InterpretedFunction.run = run
    try:
        yield baton
    finally:
        for name, function in plain.items():
            setattr(builder, name, function)
        interpreter.InterpretedFunction.run = plain_run
