"""Work that need not be waited for, such as writing a checkpoint while training goes on."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

NAME = "dlrun background"
WAITING = 2  # jobs at a time; who submits another waits for the first of them


_all: weakref.WeakSet[Background] = weakref.WeakSet()


class Background:
    """Does jobs one after another, in the order in which they were submitted.

    After a job that fails, none is begun any more; its error is raised by the next `submit` or `wait`. While there is nothing
    to do there is no thread, and forking waits until there is none: a forked process would inherit what a thread has locked.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        _all.add(self)
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Returns at once, but for a job that is too many (see `WAITING`)."""
        if self._error is not None:
            self.wait()
        earlier = self._threads[-1] if self._threads else None
        # daemon: a second Ctrl-C does not wait; what is being written then has a temporary name
        thread = threading.Thread(target=self._do, args=(job, earlier), name=NAME, daemon=True)
        thread.start()
        self._threads.append(thread)
        while len(self._threads) > WAITING:
            self._threads.pop(0).join()

    def wait(self) -> None:
        """Until all is done."""
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._raise()

    def _do(self, job: Callable[[], Any], earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        if self._error is None:
            try:
                job()
            except BaseException as error:
                self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def snapshot(state: Any) -> Any:
    """A copy of plain containers in which every tensor is one of its own on the CPU, so that training may go on changing the
    originals. Tensors that share all of their memory still do so."""
    return _copy(state, {})


def _copy(value: Any, known: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if key not in known or not value.numel():
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, dict):
        made = copy.copy(value)  # with what it carries, such as the versions of a model's modules
        for name, inner in value.items():
            made[name] = _copy(inner, known)
        return made
    if isinstance(value, list | tuple):
        return type(value)(_copy(inner, known) for inner in value)
    return value


def size_of(state: Any) -> int:
    """Bytes of all tensors in plain containers."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, inner))


def _finish() -> None:
    for background in list(_all):
        for thread in list(background._threads):
            thread.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish)
