"""Whether shares meet their target (P-POW-2): of one batch, or of a group of batches at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from maxgreen.protocol.backend import Beacon
from maxgreen.protocol.batch import SignedBatch
from maxgreen.protocol.work import header, header_prefix, target_of
from native import scrypt
from native.kernels import HASH_BYTES, HEADER_BYTES

_PART: Final = 288  # whole rounds of every x86-64 kernel


class Shares(NamedTuple):
    """A batch's shares: the key that they were found for, the history and the beacon that they stand on."""

    device: bytes
    prev: bytes
    beacon: Beacon
    nbits: int
    nonces: tuple[int, ...]

    def headers(self) -> bytes:
        """Return the headers whose digests must meet the target."""
        prefix = header_prefix(self.prev, self.beacon.value, self.device, self.beacon.issued_s, self.nbits)
        return b"".join(header(prefix, nonce) for nonce in self.nonces)

    def targets(self) -> bytes:
        """Return the target of each header."""
        return target_of(self.nbits).to_bytes(32, "little") * len(self.nonces)


ShareCheck = Callable[[Shares], bool]


def check_shares(shares: Shares) -> bool:
    """Tell whether every share meets its target."""
    return 0 not in scrypt.verify_many(shares.headers(), shares.targets())


def shares_of(group: Iterable[SignedBatch], beacons: Mapping[int, Beacon]) -> list[Shares]:
    """Return the shares of batches that stand on these beacons."""
    return [
        Shares(signed.envelope.key_id, signed.batch.prev, beacons[work.beacon], work.nbits, work.nonces)
        for signed in group
        if (work := signed.batch.work) is not None and work.beacon in beacons
    ]


def check_together(asked: Sequence[Shares], pool: Executor | None = None) -> ShareCheck:
    """Check the shares of a group so that they fill the lanes of the kernel; return what knows the answers.

    The threads of a pool compute beside each other.
    """
    headers, targets = b"".join(one.headers() for one in asked), b"".join(one.targets() for one in asked)
    starts = range(0, len(targets) // HASH_BYTES, _PART)
    verdicts = b"".join(
        (map if pool is None else pool.map)(
            scrypt.verify_many,
            (headers[start * HEADER_BYTES : (start + _PART) * HEADER_BYTES] for start in starts),
            (targets[start * HASH_BYTES : (start + _PART) * HASH_BYTES] for start in starts),
        )
    )
    known: dict[Shares, bool] = {}
    start = 0
    for shares in asked:
        end = start + len(shares.nonces)
        known[shares] = 0 not in verdicts[start:end]
        start = end
    return lambda shares: known[shares] if shares in known else check_shares(shares)
