"""Receipts: what a device may rely on, made from what was just judged (P-RCT-1)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from ingest.difficulty import wanted_nbits
from ingest.judging import Judge
from maxgreen.ledger.desk import Chain, Desk
from maxgreen.protocol.backend import Receipt, decode_rejection, sign_receipt
from maxgreen.protocol.keys import Signer
from maxgreen.verify.rules import Limits

LIST: Final = 64  # seqs that wait, and verdicts, in one receipt


def receipt_for(
    chain: Chain, verdicts: Sequence[tuple[int, int]], waiting: Iterable[int], limits: Limits, server_ms: int
) -> Receipt:
    """Return the receipt that a device deserves: of the verdicts, those that are not accepted come first."""
    told = sorted(verdicts, key=lambda verdict: (verdict[1] == 0, verdict[0]))[:LIST]
    return Receipt(
        device=chain.device,
        next_seq=chain.state.next_seq,
        head=chain.state.head,
        server_ms=server_ms,
        nbits=wanted_nbits(chain.credited, limits, server_ms),
        held=tuple(sorted(seq for seq in waiting if seq >= chain.state.next_seq)[:LIST]),
        verdicts=tuple(sorted(told)),
        rejection=decode_rejection(chain.rejection) if chain.rejection else None,
    )


def seqs_waiting(desk: Desk, read: Mapping[bytes, Collection[int]]) -> dict[bytes, set[int]]:
    """Return the seqs that wait, by device: those that were read, with what the desk changes."""
    waiting = {device: {seq for seq in seqs if (device, seq) not in desk.judged} for device, seqs in read.items()}
    for (device, seq), row in desk.rows.items():
        if row.judgement is None:
            waiting.setdefault(device, set()).add(seq)
    return waiting


def add_receipts(
    desk: Desk,
    judge: Judge,
    deserving: Iterable[bytes],
    waiting: Mapping[bytes, Collection[int]],
    limits: Limits,
    signer: Signer,
    network: str,
    server_ms: int,
) -> None:
    """Put a signed receipt for each of these devices on the desk."""
    for device in deserving:
        chain = desk.chains[device]
        receipt = receipt_for(chain, judge.verdicts(device), waiting.get(device, ()), limits, server_ms)
        desk.receipts.append((device, server_ms, sign_receipt(receipt, signer, network)))
