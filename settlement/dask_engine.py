"""The tasks of an audit on a Dask cluster (docs/decisions/0021-audit-engines.md)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Final, Self, TypeVar

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from maxgreen.errors import Fatal, MaxgreenError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD: Final = 4  # tasks that wait for each thread of a worker: they travel meanwhile
_TRIES: Final = 5  # workers that may die under a task before it is given up
_CONNECT_S: Final = 10


class DaskCluster:
    """Workers of a cluster, each with this version of maxgreen installed."""

    def __init__(self, address: str) -> None:
        """Connect to a scheduler, tcp://HOST:PORT or tls://HOST:PORT; Fatal when it is none, or its workers differ."""
        try:
            self._client = Client(address, timeout=_CONNECT_S, set_as_default=False)
            found = self._client.run(version, "maxgreen")
        except (OSError, ValueError, TimeoutError, ImportError) as error:
            raise Fatal(f"engine {address}: no Dask scheduler with workers answers there ({error})") from error
        own = version("maxgreen")
        other = sorted(name for name, there in found.items() if there != own)
        if other or not found:
            self._client.close()
            what = f"workers {', '.join(other)} have another version than {own}" if other else "it has no worker"
            raise Fatal(f"engine {address}: {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield what `work` makes of each task, in their order; a worker that dies has its tasks done elsewhere."""
        waiting: deque[Future] = deque()
        coming = iter(tasks)
        while True:
            most = _AHEAD * max(1, sum(self._client.nthreads().values()))
            while len(waiting) < most and (task := next(coming, None)) is not None:
                waiting.append(self._client.submit(work, task, pure=False, retries=_TRIES))
            if not waiting:
                return
            try:
                result: R = waiting.popleft().result()
            except (KilledWorker, FutureCancelledError) as error:
                raise MaxgreenError(f"the cluster lost a task again and again: {error}") from error
            yield result
