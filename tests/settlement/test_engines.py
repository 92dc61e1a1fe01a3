"""What runs the tasks of an audit gives the same report, also when workers die."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from maxgreen.errors import Fatal, MaxgreenError, UsageError
from settlement.audit import audit
from settlement.dask_engine import DaskCluster
from settlement.engines import Processes, open_engine
from tests.conftest import free_port
from tests.settlement.test_statement import Pair


def slow_square(number):
    time.sleep(0.02)
    return number * number


def die_once(path):
    """Let the worker die under its first task that comes here."""
    marker = Path(path)
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return "done"
    return os.kill(os.getpid(), signal.SIGKILL)


def die(_task):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number):
    if number == 3:
        raise MaxgreenError("this one does not hold")
    return number


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as made:
        yield made


@pytest.fixture(params=["processes", "dask"])
def engine(request):
    if request.param == "processes":
        with Processes(2) as made:
            yield made
    else:
        with DaskCluster(request.getfixturevalue("cluster").scheduler_address) as made:
            yield made


def test_results_come_in_the_order_of_their_tasks(engine):
    asked = []

    def tasks():
        for number in range(40):
            asked.append(number)
            yield number

    found = engine.run(slow_square, tasks())
    assert next(found) == 0
    assert len(asked) < 20  # few are under way at once: memory does not grow with their number
    assert list(found) == [number * number for number in range(1, 40)]
    assert list(engine.run(slow_square, [])) == []


def test_a_worker_that_dies_loses_nothing(engine, tmp_path):
    marker = str(tmp_path / "died")
    assert list(engine.run(die_once, [marker] * 6)) == ["done"] * 6
    assert Path(marker).exists()


def test_a_task_that_kills_every_worker_is_given_up_with_a_sentence():
    with Processes(2) as processes, pytest.raises(MaxgreenError, match="died again and again"):
        list(processes.run(die, [1]))


def test_what_a_task_raises_is_raised_here(engine):
    found = engine.run(refuse, range(6))
    with pytest.raises(MaxgreenError, match="does not hold"):
        list(found)


def test_an_audit_says_the_same_by_any_engine(engine):
    made = Pair({3: {"offline": True}, "cuts": (2, 4, 6)}).made()
    alone = audit(made.pack())
    assert audit(made.pack(), run_tasks=engine.run) == alone
    assert any("segments" in check for check in alone.checks)


def test_processes_end_with_what_used_them():
    others = children()
    with Processes(2) as processes:
        found = processes.run(slow_square, range(20))
        next(found)
        workers = children() - others
        assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}/cmdline").exists() and _runs(worker) for worker in workers)


def children():
    """Return the processes that this thread started: others have some, too."""
    return set(map(int, Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()))


def _runs(process):
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("engine", ["ray", "http://127.0.0.1:1", ""])
def test_an_engine_that_is_none_is_said(engine):
    with pytest.raises(UsageError, match="--engine"):
        open_engine(engine, 1)


def test_a_scheduler_that_does_not_answer_is_said():
    with pytest.raises(Fatal, match="no Dask scheduler"):
        open_engine(f"tcp://127.0.0.1:{free_port()}", 1)
