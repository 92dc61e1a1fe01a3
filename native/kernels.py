"""The kernels of this processor: which there are, whether they compute right, and which is the quickest.

A kernel is used only after its self-test. The quickest is measured once for a processor model and remembered in the
cache folder; the environment variable MAXGREEN_SCRYPT_KERNEL forces one.
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from native._scrypt import ffi, lib

KERNEL_VARIABLE: Final = "MAXGREEN_SCRYPT_KERNEL"
HEADER_BYTES: Final = 80
HASH_BYTES: Final = 32
_LOG: Final = logging.getLogger(__name__)
_ROUNDS: Final = 5
_ROUND_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute the hash; `lanes` hashes in a round, `scratch_bytes` of memory for them."""

    name: str
    scratch_bytes: int
    lanes: int


@cache
def kernels() -> tuple[Kernel, ...]:
    """Return the kernels that this processor can run, the portable one last."""
    found = ffi.new("const mg_kernel *[]", lib.mg_kernels(ffi.NULL))
    lib.mg_kernels(found)
    return tuple(Kernel(ffi.string(k.name).decode(), k.scratch_bytes, k.lanes) for k in found)


@cache
def passes(name: str) -> bool:
    """Tell whether a kernel computes known digests in every lane; a warning says when it does not."""
    outcome = lib.mg_self_test(name.encode())
    if outcome < 0:
        known = ", ".join(kernel.name for kernel in kernels())
        raise ValueError(f"no scrypt kernel {name!r} on this processor; it has: {known}")
    if not outcome:
        _LOG.warning("scrypt kernel %s fails its self-test and is not used; please report your processor", name)
    return bool(outcome)


def chosen() -> str:
    """Return the kernel to use: the forced one, else the quickest that passes its self-test.

    ValueError when the forced one is not there or fails.
    """
    forced = os.environ.get(KERNEL_VARIABLE)
    return checked(forced) if forced else _quickest()


def checked(name: str) -> str:
    """Return the name of a kernel that may be used; ValueError for any other."""
    if not passes(name):
        raise ValueError(f"scrypt kernel {name!r} fails its self-test on this processor")
    return name


def new_context(name: str) -> Any:
    """Return a context with its scratchpad, for one thread at a time; MemoryError when there is no room."""
    context = lib.mg_context_new(checked(name).encode())
    if context == ffi.NULL:
        raise MemoryError(f"no memory for scrypt kernel {name!r}")
    return ffi.gc(context, lib.mg_context_free)


def measure(names: Iterable[str], *, round_s: float = _ROUND_S) -> dict[str, float]:
    """Return the hashes per second of kernels: the best of interleaved rounds, in processor time of this thread."""
    contexts = {name: new_context(name) for name in names}
    lanes = {kernel.name: kernel.lanes for kernel in kernels()}
    best = dict.fromkeys(contexts, 0.0)
    for _ in range(_ROUNDS):
        for name, context in contexts.items():
            best[name] = max(best[name], _rate(context, lanes[name], round_s))
    return best


def remember(rates: dict[str, float]) -> str:
    """Keep the quickest kernel for this processor model in the cache folder; return its name."""
    name = max(rates, key=rates.__getitem__)
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({**_remembered(path), _key(): name}, indent=1) + "\n")
        fresh.replace(path)
    except OSError as error:
        _LOG.info("the quickest scrypt kernel is not remembered: %s", error)
    return name


def cache_file() -> Path:
    """Return where the winners are kept: systemd's CACHE_DIRECTORY, else XDG's cache folder."""
    folder = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if folder:
        return Path(folder) / "scrypt.json"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "maxgreen" / "scrypt.json"


def processor() -> str:
    """Return the processor's model, as /proc tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.findall(r"^(?:model name|cpu family|model|stepping|CPU part|Model)\s*:\s*(.*)$", text, re.MULTILINE)
    return " ".join(dict.fromkeys(found)) or platform.machine()


@cache
def _quickest() -> str:
    known = _remembered(cache_file()).get(_key())
    if known in {kernel.name for kernel in kernels()} and passes(known):
        return known
    candidates = [kernel.name for kernel in kernels() if passes(kernel.name)]
    if not candidates:
        raise RuntimeError("no scrypt kernel computes right on this processor; its memory may be damaged")
    return remember(measure(candidates))


def _rate(context: Any, lanes: int, round_s: float) -> float:
    headers = os.urandom(HEADER_BYTES * lanes)
    digests = bytearray(HASH_BYTES * lanes)
    begin, hashes = time.thread_time(), 0
    while (used := time.thread_time() - begin) < round_s:
        lib.mg_hash_many(context, ffi.from_buffer(headers), lanes, ffi.from_buffer(digests))
        hashes += lanes
    return hashes / used


def _key() -> str:
    try:
        release = version("maxgreen")
    except PackageNotFoundError:
        release = "unknown"
    return f"{processor()}; maxgreen {release}; {','.join(kernel.name for kernel in kernels())}"


def _remembered(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
