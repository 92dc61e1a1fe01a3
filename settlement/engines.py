"""What runs the tasks of an audit or a close: this process, more of them, or a cluster. One that dies loses nothing."""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, Protocol, Self, TypeVar

from maxgreen.errors import MaxgreenError, UsageError

T = TypeVar("T")
R = TypeVar("R")
_PR_SET_PDEATHSIG: Final = 1
_AHEAD: Final = 2  # tasks that wait for each worker: enough that none idles, few enough that memory stays
_TRIES: Final = 5  # pools that may break before a task is given up: it breaks them


class Engine(Protocol):
    """What runs tasks; a context."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """End whatever was begun."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield what `work` makes of each task, in their order."""


def open_engine(engine: str, jobs: int) -> Engine:
    """Return `local`, so many processes; or a Dask cluster by its scheduler's address, tcp://HOST:PORT or tls://…."""
    if engine == "local":
        return Processes(jobs)
    if not engine.startswith(("tcp://", "tls://")):
        raise UsageError(f"--engine {engine}: expected local, or a Dask scheduler's address, tcp://HOST:PORT")
    try:
        from settlement.dask_engine import DaskCluster  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"--engine {engine}: install maxgreen[dask]") from error
    return DaskCluster(engine)


class Processes:
    """So many processes beside each other; tasks and results go through pipes."""

    def __init__(self, jobs: int) -> None:
        """`jobs`: 0 for as many as the machine has processors."""
        self._jobs = jobs or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield what `work` makes of each task, in their order; few of them are under way at once."""
        if self._jobs == 1:
            yield from map(work, tasks)
            return
        waiting: deque[tuple[T, Future[R]]] = deque()
        coming = iter(tasks)
        tries = 0
        while True:
            while len(waiting) < self._jobs * _AHEAD and (task := next(coming, None)) is not None:
                waiting.append((task, self._submit(work, task)))
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool as error:
                tries += 1
                if tries >= _TRIES:
                    raise MaxgreenError("its processes died again and again; is there enough memory?") from error
                self._end()
                waiting = deque((task, self._submit(work, task)) for task, _ in waiting)
                continue
            waiting.popleft()
            tries = 0
            yield result

    def _submit(self, work: Callable[[T], R], task: T) -> "Future[R]":
        try:
            return self._open().submit(work, task)
        except BrokenProcessPool as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # forked before there are threads: a fresh interpreter would take a second to come here
            self._pool = ProcessPoolExecutor(
                self._jobs,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_end_with,
                initargs=(os.getpid(),),
            )
        return self._pool

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _end_with(parent: int) -> None:
    """Let a worker end when its parent does, however that ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was said
        os._exit(1)
