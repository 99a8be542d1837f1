"""Work that need not be waited for, such as writing a checkpoint while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

NAME = "dlrun background"
WAITING = 2  # jobs at a time; who submits another waits for the first of them


class Background:
    """Does jobs one after another, in the order in which they were submitted.

    After a job that fails, none is begun any more; its error is raised by the next `submit` or `wait`. While there is nothing
    to do there is no thread, so that forking stays safe.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Returns at once, but for a job that is too many (see `WAITING`)."""
        self._raise()
        earlier = self._threads[-1] if self._threads else None
        # daemon: a second Ctrl-C does not wait; what is being written then has a temporary name
        self._threads.append(threading.Thread(target=self._do, args=(job, earlier), name=NAME, daemon=True))
        self._threads[-1].start()
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
        return type(value)((name, _copy(inner, known)) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copy(inner, known) for inner in value)
    return value


def size_of(state: Any) -> int:
    """Bytes of all tensors in plain containers."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, inner))
