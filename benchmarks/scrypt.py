"""Hashes per second of every kernel beside hashlib.scrypt, interleaved in one run; --json for scripts."""

import hashlib
import json
import os
import statistics
import sys
import time

from native import scrypt

ROUNDS = 5
HASHES = 1_500


def main() -> None:
    """Measure and print medians in kH/s."""
    headers = os.urandom(80 * HASHES)
    rates: dict[str, list[float]] = {kernel.name: [] for kernel in scrypt.kernels()} | {"hashlib": []}
    for _ in range(ROUNDS):
        for name, found in rates.items():
            start = time.perf_counter()
            if name == "hashlib":
                for k in range(HASHES):
                    header = headers[80 * k : 80 * k + 80]
                    hashlib.scrypt(header, salt=header, n=1024, r=1, p=1, dklen=32)
            else:
                scrypt.hash_many(headers, kernel=name)
            found.append(HASHES / (time.perf_counter() - start) / 1000)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max((name for name in medians if name != "hashlib"), key=medians.__getitem__)
    result = {"kernels": medians, "best": best, "ratio_hashlib": medians[best] / medians["hashlib"]}
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    for name, found in rates.items():
        print(f"{name:<12} {medians[name]:7.2f} kH/s  ({min(found):.2f}-{max(found):.2f})")
    print(f"best: {best}, {result['ratio_hashlib']:.2f} x hashlib")


if __name__ == "__main__":
    main()
