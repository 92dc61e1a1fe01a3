"""scrypt(1024, 1, 1) of every kernel beside its peers, interleaved in one run.

    python benchmarks/scrypt.py [--minerd PATH] [--json] [--plot FILE] [--rounds N]

One thread unless said otherwise. minerd is pooler's cpuminer 2.5.1, `./configure CFLAGS="-O3 -march=native"`.
Figures of one run may be compared with each other, and with nothing else.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from native import kernels, scrypt

BATCHES = (1, 4, 8, 16, 24, 48)
DUTIES = (0.10, 0.25, 0.50, 0.75)
TURN_S = 0.5  # of a kernel in a round
MINERD_S = 12  # minerd says its rate every five seconds
VERIFY = 480


def main() -> None:
    """Measure, then print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minerd", type=Path, help="path of minerd, to compare with")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--plot", type=Path, help="write a picture (SVG, PNG) of the rates")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; the median is shown")
    options = parser.parse_args()
    result = measure(options.minerd, options.rounds)
    if options.plot:
        plot(result, options.plot)
    print(json.dumps(result) if options.json else table(result))


def measure(minerd: Path | None, rounds: int) -> dict[str, Any]:
    """Return everything that is measured, rates in kH/s, times in ms."""
    names = [kernel.name for kernel in kernels.kernels()]
    sources: dict[str, Callable[[], float]] = {name: _kernel_turn(name) for name in names}
    sources["hashlib"] = _hashlib_turn
    if minerd:
        sources["minerd"] = lambda: _minerd_turn(minerd)
    verify = _verify_turn(kernels.chosen())
    rates: dict[str, list[float]] = {name: [] for name in sources}
    verify_rates = []
    for _ in range(rounds):
        for name, turn in sources.items():
            rates[name].append(turn())
        verify_rates.append(verify())
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max(names, key=medians.__getitem__)
    verified = statistics.median(verify_rates)
    result: dict[str, Any] = {
        "processor": kernels.processor(),
        "rounds": rounds,
        "kernels": {name: medians[name] for name in names},
        "hashlib": medians["hashlib"],
        "minerd": medians.get("minerd"),
        "spread": {name: [min(found), max(found)] for name, found in rates.items()},
        "best": best,
        "ratio_hashlib": medians[best] / medians["hashlib"],
        "ratio_minerd": medians[best] / medians["minerd"] if minerd else None,
        "ratios_minerd": {name: medians[name] / medians["minerd"] for name in names} if minerd else None,
        "verify": verified,
        "verify_ratio_hashlib": verified / medians["hashlib"],
        "batch_ms": {name: {count: _batch_ms(name, count) for count in BATCHES} for name in names},
        "two_threads_ratio": _two_threads(best),
        "stop_ms": _stop_ms(best),
        "duty": {duty: _duty(best, duty) for duty in DUTIES},
    }
    return result


def table(result: dict[str, Any]) -> str:
    """Return the result for people."""
    lines = [f"{result['processor']}, one thread, medians of {result['rounds']} interleaved rounds", ""]
    lines.append(
        f"{'kernel':<17}{'kH/s':>7}  {'lowest-highest':<15}{'x hashlib':>10}{'x minerd':>9}   ms for a batch of"
    )
    lines.append(f"{'':<61}" + "".join(f"{count:>6}" for count in BATCHES))
    peers = {name: result[name] for name in ("hashlib", "minerd") if result[name]}
    for name, rate in {**result["kernels"], **peers}.items():
        low, high = result["spread"][name]
        to_minerd = f"{rate / result['minerd']:9.2f}" if result["minerd"] else " " * 9
        batches = "".join(f"{ms:6.2f}" for ms in result["batch_ms"].get(name, {}).values())
        spread = f"{low:.2f}-{high:.2f}"
        lines.append(f"{name:<17}{rate:7.2f}  {spread:<15}{rate / result['hashlib']:10.2f}{to_minerd}   {batches}")
    lines += [
        "",
        f"best: {result['best']}",
        f"verify_many: {result['verify']:.2f} kH/s, {result['verify_ratio_hashlib']:.2f} x hashlib",
        f"two threads: {result['two_threads_ratio']:.2f} x one",
        f"stop at full duty: {result['stop_ms']['median']:.2f} ms, at most {result['stop_ms']['max']:.2f} ms of 40",
        "duty: " + ", ".join(f"{asked:.0%} asked, {found:.1%} used" for asked, found in result["duty"].items()),
    ]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the rates as bars."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install 'maxgreen[bench]'") from None
    mpl.use("agg")
    from matplotlib import pyplot as plt

    rates = {**result["kernels"], **{name: result[name] for name in ("minerd", "hashlib") if result[name]}}
    names = sorted(rates, key=rates.__getitem__)
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(
        names, [rates[name] for name in names], color=["C1" if n in {"minerd", "hashlib"} else "C0" for n in names]
    )
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("thousand hashes per second, one thread")
    axes.set_title(f"scrypt(1024, 1, 1) on {result['processor']}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _kernel_turn(name: str) -> Callable[[], float]:
    lanes = next(kernel.lanes for kernel in kernels.kernels() if kernel.name == name)
    headers = os.urandom(80 * lanes * max(1, 96 // lanes))

    def turn() -> float:
        begin, hashes = time.perf_counter(), 0
        while (used := time.perf_counter() - begin) < TURN_S:
            scrypt.hash_many(headers, kernel=name)
            hashes += len(headers) // 80
        return hashes / used / 1000

    return turn


def _verify_turn(name: str) -> Callable[[], float]:
    headers, targets = os.urandom(80 * VERIFY), b"\xff" * 32 * VERIFY

    def turn() -> float:
        begin, hashes = time.perf_counter(), 0
        while (used := time.perf_counter() - begin) < TURN_S:
            scrypt.verify_many(headers, targets, kernel=name)
            hashes += VERIFY
        return hashes / used / 1000

    return turn


def _hashlib_turn() -> float:
    begin, hashes = time.perf_counter(), 0
    while (used := time.perf_counter() - begin) < TURN_S:
        header = hashes.to_bytes(80, "little")
        hashlib.scrypt(header, salt=header, n=1024, r=1, p=1, dklen=32)
        hashes += 1
    return hashes / used / 1000


def _minerd_turn(path: Path) -> float:
    process = subprocess.Popen(
        [path, "--benchmark", "-a", "scrypt", "-t", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(MINERD_S)
    process.terminate()
    said = re.findall(r"Total: ([0-9.]+) khash/s", process.communicate()[0])
    if not said:
        raise SystemExit(f"{path}: said no rate within {MINERD_S} s")
    return float(said[-1])


def _batch_ms(name: str, count: int) -> float:
    headers = os.urandom(80 * count)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        scrypt.hash_many(headers, kernel=name)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1000


def _two_threads(name: str) -> float:
    def rate(count: int) -> float:
        miners = [scrypt.Miner(os.urandom(76), 0, kernel=name) for _ in range(count)]
        threads = [threading.Thread(target=miner.find) for miner in miners]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        time.sleep(2)
        used, hashes = time.perf_counter() - begin, sum(miner.hashes for miner in miners)
        for miner in miners:
            miner.stop()
        for thread in threads:
            thread.join()
        return hashes / used

    return statistics.median(rate(2) / rate(1) for _ in range(3))


def _stop_ms(name: str) -> dict[str, float]:
    times = []
    for _ in range(40):
        miner = scrypt.Miner(os.urandom(76), 0, kernel=name)
        thread = threading.Thread(target=miner.find)
        thread.start()
        time.sleep(0.02)
        begin = time.perf_counter()
        miner.stop()
        thread.join()
        times.append((time.perf_counter() - begin) * 1000)
    return {"median": statistics.median(times), "max": max(times)}


def _duty(name: str, asked: float) -> float:
    """Return the share of a core that a miner used in two seconds."""
    miner = scrypt.Miner(os.urandom(76), 0, duty=asked, kernel=name)
    used: list[float] = []

    def mine() -> None:
        begin, cpu = time.perf_counter(), time.thread_time()
        miner.find()
        used.append((time.thread_time() - cpu) / (time.perf_counter() - begin))

    thread = threading.Thread(target=mine)
    thread.start()
    time.sleep(2)
    miner.stop()
    thread.join()
    return used[0]


if __name__ == "__main__":
    main()
