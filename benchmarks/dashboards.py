"""How long the panels of `grafana/dashboards` take over a month of a fleet, on a real InfluxDB 2.

Without arguments: 100 devices of two channels, 30 days of minutes (8.6 million points). Each query is asked as Grafana
does for a graph that is 1,000 pixels wide: its interval is the span divided by that.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingest.config import InfluxSettings
from ingest.view.influx import InfluxSink
from tests.services import influx_server

FOLDER = Path(__file__).parent.parent / "grafana/dashboards"
PIXELS = 1_000
STEPS_S = (60, 120, 300, 600, 900, 1_200, 1_800, 3_600, 7_200, 10_800)


def fill(sink: InfluxSink, devices: int, days: int, until_s: int) -> None:
    """Write what ingest would write of a month: minutes, days, and a batch each hour for the tables."""
    for day in range(days):
        begin_s = until_s - (days - day) * 86_400
        lines = []
        for number in range(devices):
            device = f"{number:032x}"
            for channel, role in ((0, "generation"), (1, "sent")):
                tags = f"device={device},channel={channel},role={role}"
                for minute in range(1_440):
                    watts = max(0.0, 60 * math.sin(math.pi * (minute - 360) / 720)) + number % 7
                    t_ns = (begin_s + minute * 60) * 10**9 + number
                    lines.append(f"minute,{tags} n=60i,v=18.0,i={watts / 18:.6f},p={watts:.6f} {t_ns}")
                lines.append(f"day,{tags} forward_kwh=0.4,reverse_kwh=0.0,counted_s=86000,gap_s=400 {begin_s * 10**9}")
            for hour in range(24):
                for channel, role in ((0, "generation"), (1, "sent")):
                    tags = f"device={device},channel={channel},role={role}"
                    lines.append(f"hour,{tags} forward_kwh=0.02 {(begin_s + hour * 3_600) * 10**9}")
                t_ns = (begin_s + hour * 3_600) * 10**9 + number
                verdict = 'verdict="accepted",reason=""'
                lines.append(f"batch,device={device} {verdict},seq={day * 24 + hour}i,shares=1i,hashes=1.0 {t_ns}")
                lines.append(f"work,device={device} shares=1i,hashes=1.0 {t_ns}")
            if len(lines) > 9_000:
                write(sink, lines)
                lines = []
        write(sink, lines)
        print(f"\rday {day + 1} of {days} written", end="", file=sys.stderr)
    print(file=sys.stderr)


def write(sink: InfluxSink, lines: list[str]) -> None:
    """Write lines in requests of the size that ingest uses."""
    for begin in range(0, len(lines), 10_000):
        sink.write("\n".join(lines[begin : begin + 10_000]))


def main() -> None:
    """Fill, then ask each query three times; the best and the worst are shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    with tempfile.TemporaryDirectory() as folder, influx_server(folder) as (url, token, org, bucket):
        (Path(folder) / "token").write_text(token)
        sink = InfluxSink(InfluxSettings(url=url, token_file=Path(folder) / "token", org=org, bucket=bucket))
        fill(sink, options.devices, options.days, int(until.timestamp()))
        span_s = options.days * 86_400
        interval_s = next((step for step in STEPS_S if step >= span_s / PIXELS), STEPS_S[-1])
        now_ms = int(until.timestamp() * 1000)
        slowest = 0.0
        for path in sorted(FOLDER.glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                for target in (one for one in panel["targets"] if "query" in one):
                    text = target["query"].replace(
                        "$timeFilter", f"time >= {now_ms - span_s * 1000}ms and time <= {now_ms}ms"
                    )
                    text = text.replace("$__interval", f"{interval_s}s").replace("$device", f"{3:032x}")
                    text = (
                        text.replace("$period", ".*")
                        .replace("$__from", str(now_ms - span_s * 1000))
                        .replace("$__to", str(now_ms))
                    )
                    if panel.get("timeFrom") == "now-24h":
                        text = text.replace(f"{now_ms - span_s * 1000}ms", f"{now_ms - 86_400_000}ms")
                        text = text.replace(f"time({interval_s}s)", f"time({panel['interval']})")
                    times = []
                    for _ in range(3):
                        arguments = urllib.parse.urlencode({"db": bucket, "q": text, "epoch": "ms"})
                        request = urllib.request.Request(
                            f"{url}/query?{arguments}", headers={"Authorization": f"Token {token}"}
                        )
                        begun = time.perf_counter()
                        answer = urllib.request.urlopen(request, timeout=120).read()
                        times.append(time.perf_counter() - begun)
                        assert b'"error"' not in answer, answer[:500]
                    slowest = max(slowest, *times)
                    print(f"{path.stem:<11} {panel['title']:<40} {1000 * min(times):7.0f} {1000 * max(times):7.0f} ms")
        print(
            f"slowest: {1000 * slowest:.0f} ms, {options.devices} devices, {options.days} days, interval {interval_s} s"
        )


if __name__ == "__main__":
    main()
