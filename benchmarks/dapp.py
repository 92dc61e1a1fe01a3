"""How long pages take with a fleet behind them, how many lists of devices a second, and how fresh live power is.

    python benchmarks/dapp.py [--devices 1000] [--years 20] [--json]

A deployment with a past on anvil; `--devices` devices in the ledger with ten days of ten-minute windows each, and
`--years` of them with a year. The pages run as one process; two others ask.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from sqlalchemy import insert

sys.path.insert(0, str(Path(__file__).parent.parent))

from dapp.app import make_app
from dapp.audits import Audits
from dapp.keep import Keep
from dapp.live import Live
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.schema import chains, sums, windows
from simulator.lab import Lab
from tests.chain.world import on_anvil
from tests.conftest import running_anvil
from tests.dapp.conftest import MORNING, world_of
from tests.e2e.story import Story, tell
from tests.services import free_port, wait_for

WINDOW_S, DAY_S = 600, 86_400


class Still:
    """The story's time, without asking its chain for it."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Return it."""
        return self._now_ms

    def sleep_until(self, t_ms: int) -> None:
        """Nobody sleeps here."""


def fill(story: Story, devices: int, years: int) -> int:
    """Put devices into the ledger, with what they measured until now; return the token of one that has a year."""
    world, now_s = world_of(story), story.now_s // WINDOW_S * WINDOW_S
    model, state = world.systems[1], None
    with world.book() as book:
        state = book.state(model.record.device)
    with story.engine.begin() as connection:
        for number in range(devices):
            lab, days = Lab(10_000 + number), 365 if number < years else 10
            record = replace(model.record, spki=lab.signer.spki, predecessor=None)
            owner = f"0x{number:040x}" if number else model.owner
            put_devices(connection, [KnownDevice(record, 1_000 + number, owner, model.system)])
            known = replace(state, wall_ms=now_s * 1000).to_bytes()
            row = {"device": lab.device, "version": 1, "next_seq": 9, "state": known, "waiting": 0, "waiting_bytes": 0}
            connection.execute(insert(chains).values(**row, due=0, credited=b""))
            times = range(now_s - days * DAY_S, now_s, WINDOW_S)
            whole = {"accepted": 1, "rejected": 0, "suspended": 0, "shares": 9, "hashes": 9, "interval_ms": 1_000}
            connection.execute(
                insert(windows),
                [{"device": lab.device, "window_s": t, **whole, "breaks": 0, "revision": 1} for t in times],
            )
            grown = {"reverse_mws": 0, "square_high": 0, "square_low": 9, "counted_ms": 600_000, "unmetered_ms": 0}
            connection.execute(
                insert(sums),
                [
                    {
                        "device": lab.device, "window_s": t, "channel": c, "energy_mws": t % DAY_S * 1_000, **grown,
                        "longest_ms": 1_000,
                    }
                    for t in times
                    for c in (0, 1)
                ],
            )  # fmt: skip
    return 1_000


def pages(story: Story, token: int) -> dict[int, list[str]]:
    """Return the pages that are timed, by who asks."""
    day, ballot = story.packs[0].run.period, world_of(story).ballots["technical"].all()[0]
    return {
        5: [
            "/home", f"/systems/{token}", f"/systems/{token}?day={day}", f"/api/v1/systems/{token}/curve?day={day}",
            f"/api/v1/systems/{token}/days?month={day[:7]}", f"/api/v1/systems/{token}/months?year={day[:4]}",
            f"/systems/1/statements/{day}", "/wallet", "/account", "/act/take-out", "/public",
        ],
        2: ["/dao", "/dao?ended=yes", f"/dao/ballots/technical/{ballot.number:064x}", "/dao/orders/1", "/dao/members"],
        1: ["/fleet", "/api/v1/fleet?limit=100", "/home"],
    }  # fmt: skip


async def _load(url: str, secret: str, seconds: float, clients: int, rate: float) -> list[float]:
    """Ask over connections of our own: a client library would take more of the processor than the server does."""
    took: list[float] = []
    where = urlsplit(url)
    request = (
        f"GET /api/v1/fleet?limit=100 HTTP/1.1\r\nHost: {where.netloc}\r\nCookie: mg_session={secret}\r\n\r\n"
    ).encode()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        begins = time.monotonic()
        ends, count = begins + seconds, 0
        while time.monotonic() < ends:
            if rate:  # all of them together ask so often a second
                await asyncio.sleep(max(0.0, begins + count * clients / rate - time.monotonic()))
                count += 1
            begun = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.partition(b":")[2]))
            took.append(time.monotonic() - begun)
        writer.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return took


def load(url: str, secret: str, seconds: float, clients: int, rate: float, answers: Any) -> None:
    """Ask for the list of devices for some time; hand over how long each answer took."""
    answers.put(asyncio.run(_load(url, secret, seconds, clients, rate)))


def timed(url: str, secret: str, path: str, times: int) -> float:
    """Return the 95th percentile of how long a page takes, ms, after one that is not counted."""
    took: list[float] = []
    with httpx.Client(base_url=url, cookies={"mg_session": secret}, timeout=120) as client:
        for number in range(times + 1):
            begun = time.monotonic()
            answer = client.get(path)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[:200])
            took += [1000 * (time.monotonic() - begun)] if number else []
    return statistics.quantiles(took, n=20)[-1]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=0, help="of the list, a second; default: as fast as it goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_anvil(*MORNING) as rpc:
        story = Story(on_anvil(rpc), Path(folder))
        tell(story)
        token = fill(story, options.devices, options.years)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        world = world_of(story, url, Keep(Path(folder) / "dapp.db"), per_minute=10**9)
        world.clock = Still(world.now_ms)
        live = Live(world, None)
        config = uvicorn.Config(make_app(world, live, Audits("", None)), port=port, log_level="error")
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, daemon=True).start()
        wait_for(lambda: server.started, 30, "the pages")
        secrets = {k: world.keep.begin_session(story.world.accounts[k].address, world.now_ms) for k in (1, 2, 5)}
        names = {1: "operator", 2: "member", 5: "owner"}
        found = {
            f"{names[k]} {path}": timed(url, secrets[k], path, 40)
            for k, paths in pages(story, token).items()
            for path in paths
        }
        spawn = multiprocessing.get_context("spawn")
        answers = spawn.Queue()
        process = spawn.Process(target=load, args=(url, secrets[1], options.seconds, 50, options.rate, answers))
        process.start()
        took = answers.get(timeout=options.seconds + 120)
        process.join()
        live.stop()
        server.should_exit = True
    value = {
        "devices": options.devices,
        "page_p95_ms": {path: round(ms, 1) for path, ms in found.items()},
        "slowest_page_p95_ms": round(max(found.values()), 1),
        "list_requests_per_s": round(len(took) / options.seconds),
        "list_p99_ms": round(1000 * statistics.quantiles(took, n=100)[-1]),
    }
    if options.json:
        print(json.dumps(value))
        return
    for path, ms in value["page_p95_ms"].items():
        print(f"{ms:8.1f} ms  {path[:90]}")
    print(f"list of devices, 50 clients: {value['list_requests_per_s']} a second, p99 {value['list_p99_ms']} ms")


if __name__ == "__main__":
    main()
