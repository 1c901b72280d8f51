"""Triton's interpreter, faster, and strict about memory. Only where TRITON_INTERPRET=1; nothing compiles afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from fusedrnn.triton_kernels import walk

builder = interpreter.interpreter_builder


def hasten() -> None:
    """Triton's language is made the interpreter's for good, and integers are not asked whether they overflow.

    As it is, the language is changed for every launch and for every function that a kernel calls, and each sum and
    product of integers is made a second time, in 64 bits: no size of a test comes near that.
    """
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    for function in (tl.zeros, walk.rows):  # one that sees triton.language.core, one that sees triton.language
        interpreter._patch_lang(function.fn)
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)


class Launch:
    """The memory of one launch, and who has done what with it.

    A program is many threads on a GPU: what one of them stored, another may load or store over only behind a barrier of
    the program. (That a tile is loaded before it is stored needs none: the values stored depend on those loaded.)
    Programs must not touch what another one stores at all, but where they wait for each other: that is for coop.py.
    """

    def __init__(self, arguments: Iterable[Any], apart: bool) -> None:
        tensors = [t for t in arguments if isinstance(t, torch.Tensor) and t.numel()]
        extents = sorted((t.data_ptr(), t.data_ptr() + _extent_bytes(t)) for t in tensors)
        self.begins = np.array([begin for begin, _ in extents], dtype=np.uint64)
        self.ends = np.maximum.accumulate(np.array([end for _, end in extents], dtype=np.uint64))
        self.apart = apart
        self.program: object = None
        self.fresh: dict[object, set[int]] = {}  # by program, stored since its last barrier
        self.told = set[object]()  # programs whose first thread alone knows that a wait is over
        self.stored, self.loaded = set[int](), set[int]()  # by the program that runs
        self.stored_by_others, self.loaded_by_others = set[int](), set[int]()

    def barrier(self) -> None:
        """All threads of the program have come this far."""
        self.fresh[builder.grid_idx] = set()
        self.told.discard(builder.grid_idx)

    def atomic(self) -> None:
        """One thread speaks for the program, or asks for it."""
        assert not self.fresh.get(builder.grid_idx), "a program says that it has stored before all its threads have"
        self.told.add(builder.grid_idx)

    def access(self, pointers: Any, stores: bool) -> None:
        """AssertionError if it is out of bounds, or if the outcome hangs on who comes first."""
        at = np.searchsorted(self.begins, pointers, "right")  # the extent that begins last, from 1; 0: none
        inside = (at > 0) & (pointers < self.ends[at - 1])
        assert inside.all(), "an access outside the tensors of the launch"
        if builder.grid_idx != self.program:
            self.program = builder.grid_idx
            self.stored_by_others |= self.stored
            self.loaded_by_others |= self.loaded
            self.stored, self.loaded = set(), set()
        assert self.program not in self.told, "a thread goes on before it knows that the wait is over"
        addresses, does = set(pointers.tolist()), "stores to" if stores else "loads"
        fresh = self.fresh.setdefault(self.program, set())
        assert fresh.isdisjoint(addresses), f"a thread {does} what another one stored, with no barrier between"
        if stores:
            fresh |= addresses
        if self.apart:
            assert self.stored_by_others.isdisjoint(addresses), f"a program {does} what another one stored"
            if stores:
                assert self.loaded_by_others.isdisjoint(addresses), "a program stores to what another one loads"
            (self.stored if stores else self.loaded).update(addresses)


def _extent_bytes(t: torch.Tensor) -> int:
    return (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))) * t.element_size()


@contextmanager
def watched() -> Iterator[None]:
    """Every launch inside stays within its tensors, and needs no barrier that is not there."""
    names = ("create_masked_load", "create_masked_store", "create_barrier", "create_atomic_rmw")
    load, store, barrier, atomic = (getattr(builder, name) for name in names)
    execute, launch = interpreter.GridExecutor.__call__, Launch((), True)

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal launch
        launch = Launch(arguments, "barrier" not in self.arg_names)
        return execute(self, *arguments, **options)

    def loaded(pointers: Any, mask: Any, *rest: Any) -> Any:
        launch.access(pointers.data[mask.data], False)
        return load(pointers, mask, *rest)

    def stored(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.access(pointers.data[mask.data], True)
        return store(pointers, value, mask, *rest)

    def met() -> Any:
        launch.barrier()
        return barrier()

    def spoke(*arguments: Any) -> Any:
        launch.atomic()
        return atomic(*arguments)

    for name, function in zip(names, (loaded, stored, met, spoke), strict=True):
        setattr(builder, name, function)
    interpreter.GridExecutor.__call__ = called
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = execute
        for name in names:
            delattr(builder, name)
