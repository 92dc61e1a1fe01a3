"""Audits that members begin from a page: one at a time, in a process of its own, with what it printed."""

import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dapp.views import money
from dapp.world import World
from settlement.packs import write_pack_of

_KEPT: Final = 100
_MAIN: Final = "from maxgreen.cli import main; main()"
_PATIENCE_S: Final = 6 * 3_600.0


@dataclass
class Audit:
    """An audit: waits, runs, ok, or the first difference; what it printed."""

    state: str
    text: str = ""


class Audits:
    """Runs `maxgreen audit` on the evidence of orders."""

    def __init__(self, rpc: str, deployment: Path | None) -> None:
        """`rpc` and `deployment`: what an audit compares with; without them it compares with no chain."""
        self._rpc, self._deployment = rpc, deployment
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._known: OrderedDict[int, Audit] = OrderedDict()

    def of(self, order: int) -> Audit | None:
        """Return the newest audit of an order, if there is one."""
        with self._lock:
            return self._known.get(order)

    def begin(self, world: World, order: int, period: str) -> None:
        """Begin an audit, unless one of this order is under way."""
        with self._lock:
            known = self._known.get(order)
            if known is not None and known.state in {"waits", "runs"}:
                return
            audit = self._known[order] = Audit("waits")
            self._known.move_to_end(order)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        threading.Thread(target=self._run, args=(world, audit, period), name="audit", daemon=True).start()

    def _run(self, world: World, audit: Audit, period: str) -> None:
        with self._alone, tempfile.TemporaryDirectory(prefix="maxgreen-audit-") as folder:
            audit.state = "runs"
            try:
                run, order = money.run_of(world, period)
                pack = Path(folder) / "pack.zip"
                write_pack_of(world.store, run, order, pack)
                command = [sys.executable, "-c", _MAIN, "audit", str(pack)]
                if self._deployment is not None:
                    command += ["--rpc", self._rpc, "--deployment", str(self._deployment)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
                audit.text = (done.stdout + done.stderr).replace(str(pack), f"the pack of {period}")
                audit.state = "ok" if done.returncode == 0 else "differs"
            except Exception as error:  # noqa: BLE001 - whoever began it reads what went wrong
                audit.text, audit.state = f"{type(error).__name__}: {error}", "failed"
