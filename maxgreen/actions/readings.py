"""The newest register that a meter attested: what owners show in take-outs."""

from typing import Final

from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.reasons import Verdict

_RECENT: Final = 5_000  # batches: a month of ten-minute ones


def newest_reading(book: Book, token: int, channel: int) -> Attestation:
    """Return the newest attested register of a system's channel; UsageError when there is none lately."""
    known = book.device_of(token)
    if known is None:
        raise UsageError(f"system {token}: not in the ledger; name the ledger of ingest.toml with --ledger")
    for row in book.recent_batches(known.record.device, _RECENT):
        if row.verdict == Verdict.ACCEPTED.value and row.message:
            for attestation in parse_batch(bytes(row.message)).batch.attestations:
                if attestation.channel == channel:
                    return attestation
    raise UsageError(
        f"system {token}: channel {channel} attested no register lately; the operator asks for it: "
        f"maxgreen ingest command registers {known.record.device.hex()} --who NAME"
    )
