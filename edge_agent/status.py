"""What the agent tells its owner: one object, as a file under /run, as metrics, as a page."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_agent.agent import Agent
from edge_agent.report import ALARM_CODES, Report
from edge_agent.source import DelayHistogram
from maxgreen.clock import utc
from maxgreen.lock import holder_of

if TYPE_CHECKING:
    from rich.table import Table

_LOG: Final = logging.getLogger(__name__)
Status = Mapping[str, Any]
STATUS: Final = "status.json"
SYSTEMD_FOLDER: Final = Path("/run/maxgreen-agent")
SILENT_S: Final = 60.0
# metric: key of the status, help
_GAUGES: Final = {
    "spool_records": ("waiting", "sealed batches without a receipt"),
    "spool_bytes": ("spool_bytes", "bytes in use in the spool"),
    "readings_in_memory": ("stalled", "rounds of readings that wait because the medium takes nothing"),
    "broker_connected": ("connected", "1 while the broker is there"),
    "clock_synchronised": ("synchronised", "1 while the clock is synchronised"),
    "mining_paused": ("mining_paused", "1 while mining pauses"),
    "cpu_celsius": ("cpu_c", "CPU temperature"),
}


def systemd_folder() -> Path | None:
    """Return what systemd made in /run for this service, None outside of it."""
    found = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(found) if found else None


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """Return where what lasts as long as the agent lies: systemd's folder, else a fresh one that goes with it."""
    found = systemd_folder()
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="maxgreen-agent-") as folder:
        yield Path(folder)


def read_running(state_dir: Path) -> dict[str, Any] | None:
    """Return the status of the agent that runs on a state folder, None when none does; `silent_s` tells its age."""
    try:
        holder = holder_of(state_dir)
    except PermissionError:  # another user's: what it shows to all is in /run
        return _read(SYSTEMD_FOLDER / STATUS)
    if holder is None:
        return None
    found = _read(Path(holder["status"])) if "status" in holder else None
    return found or {"starting": f"process {holder.get('pid', '?')} starts, or hangs at its start"}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        return None
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**6
    value["silent_s"] = max(0, now_ms - int(value.get("boot_ms", now_ms))) / 1000
    return value


class Shown:
    """Shows an agent's report while it runs: the file under /run, and metrics on 127.0.0.1."""

    def __init__(self, agent: Agent, port: int, folder: Path) -> None:
        self._agent = agent
        self._path = folder / STATUS
        self._failed = False
        self._written: Report | None = None
        self._stop_metrics: Callable[[], None] = lambda: None
        if port:
            try:
                self._stop_metrics = Exporter(lambda: agent.report, agent.delays).serve(port)
            except OSError as error:
                _LOG.warning("no metrics on port %d: %s; set metrics_port", port, error)

    def refresh(self) -> None:
        """Write the file when the report is a newer one."""
        if self._agent.report is self._written:
            return
        self._written = self._agent.report
        try:
            write(self._path, self._written.to_json())
        except OSError as error:
            if not self._failed:
                _LOG.warning("status file %s: %s", self._path, error)
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """Take file and metrics away: a status of an agent that does not run would mislead."""
        self._stop_metrics()
        self._path.unlink(missing_ok=True)


def write(path: Path, status: Status) -> None:
    """Write the file whole or not at all; it lies in memory, so nothing wears."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(status))
    fresh.chmod(0o644)
    fresh.replace(path)


class Exporter(Collector):
    """Prometheus metrics of an agent on the loopback interface."""

    def __init__(self, report: Callable[[], Report], delays: DelayHistogram | None) -> None:
        self._report = report
        self._delays = delays
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def serve(self, port: int) -> Callable[[], None]:
        """Answer on 127.0.0.1; return what ends it."""
        server, thread = start_http_server(port, "127.0.0.1", self._registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        report = self._report()
        for name, (key, text) in _GAUGES.items():
            if (value := getattr(report, key)) is not None:
                yield GaugeMetricFamily(f"maxgreen_agent_{name}", text, value=float(value))
        alarms = GaugeMetricFamily("maxgreen_agent_alarm", "1 while an alarm needs the owner", labels=["code"])
        for code in ALARM_CODES:
            alarms.add_metric([code], float(any(alarm.code == code for alarm in report.alarms)))
        yield alarms
        power = GaugeMetricFamily("maxgreen_agent_power_watts", "power of a channel", labels=["channel", "role"])
        energy = GaugeMetricFamily(
            "maxgreen_agent_energy_joules_total", "energy register of a channel", labels=["channel", "role"]
        )
        for number, channel in report.channels.items():
            energy.add_metric([str(number), channel.role], channel.energy_j)
            if channel.power_w is not None:
                power.add_metric([str(number), channel.role], channel.power_w)
        yield power
        yield energy
        if self._delays is not None:
            yield _histogram(self._delays)


def _histogram(delays: DelayHistogram) -> Metric:
    buckets, total = [], 0
    for bound_ms, count in zip((*delays.bounds_ms, None), delays.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound_ms is None else str(bound_ms / 1000), float(total)))
    family = HistogramMetricFamily("maxgreen_agent_sample_delay_seconds", "how long after its slot a reading began")
    family.add_metric([], buckets, delays.sum_ms / 1000)
    return family


def show(status: Status) -> None:
    """Print the status in a terminal."""
    from rich.console import Console  # noqa: PLC0415 - the agent that runs has no use for it

    Console().print(page(status))


def page(status: Status) -> "Table":
    """Return the status as its owner reads it in a terminal."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"device {status['device']}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for alarm in status.get("alarms", ()):
        table.add_row("ALARM", alarm, style="red")
    for number, channel in status["channels"].items():
        power = "no reading" if channel["power_w"] is None else f"{channel['power_w']:.3f} W"
        today = f", {channel['today_wh']:.3f} Wh today" if channel.get("today_wh") is not None else ""
        table.add_row(
            f"channel {number}", f"{channel['role']}: {power}{today}, {channel['energy_j'] / 3.6e6:.6f} kWh in all"
        )
    if status.get("running") is False:
        table.add_row("agent", "does not run; what follows is what its spool says")
    elif "starting" in status:
        table.add_row("agent", status["starting"])
    elif status.get("silent_s", 0) > SILENT_S:
        said = f"has told nothing for {status['silent_s']:.0f} s: it hangs; journalctl -u maxgreen-agent"
        table.add_row("agent", said, style="red")
    table.add_row("batches", f"{status['seq']} sealed, {status['waiting']} without a receipt")
    receipt = status.get("receipt")
    table.add_row(
        "last receipt", f"up to batch {receipt['next_seq']}, {utc(receipt['server_ms'])}" if receipt else "none yet"
    )
    if "connected" in status:
        table.add_row("broker", "connected" if status["connected"] else "not connected")
        table.add_row(
            "clock", "synchronised" if status["synchronised"] else "not synchronised: samples wait for a date"
        )
        table.add_row("CPU", "unknown" if status["cpu_c"] is None else f"{status['cpu_c']:.1f} °C")
        table.add_row("mining", status["mining"])
        if status.get("transfer"):
            table.add_row("transfer", status["transfer"])
        windows = status["proof_windows"]
        table.add_row("proof windows", f"{windows['with_shares']} of {windows['windows']} hold shares")
        for lost in windows["lost"][-5:]:
            table.add_row("", f"{lost['start']} will not count: {lost['why']}")
    return table
