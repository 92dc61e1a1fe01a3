"""What `maxgreen agent recover` does: go on with what is whole, or else with a new key (docs/decisions/0009)."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent import salvage
from edge_agent.config import AgentSettings
from edge_agent.identity import SALVAGED, Identities
from edge_agent.spool import DamagedError, MediumError, Spool
from edge_agent.uplink import agrees
from maxgreen.errors import Fatal, UsageError
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import Signer, key_id

KEY_STAYS: Final = "the registers are whole, and the key stays"


def recovered(settings: AgentSettings, last_receipt: Callable[[bytes], Receipt | None]) -> tuple[Signer, str]:
    """Recover the spool of a state folder; return the signer that it goes on with, and what became of it.

    `last_receipt(device)` asks for the newest receipt. UsageError when nothing is wrong, Fatal when a receipt is needed
    and there is none, MediumError when the medium can't be read or written now.
    """
    genesis = network_digest(settings.network)
    identities = Identities(settings.state_dir, settings.key)
    identities.resume()
    device = key_id(identities.signer().spki)
    path = settings.spool_file
    try:
        identities.switch(genesis)  # a change of keys that was cut off ends first
        spool = Spool(path, genesis)
    except DamagedError:
        return _repair(identities, device, path, genesis, last_receipt)
    try:
        try:
            spool.check()
            damaged = False
        except DamagedError:
            damaged = True
        receipt = None if damaged else last_receipt(device)
        restored = receipt is not None and not agrees(spool, receipt, settings.network)
    finally:
        spool.close()
    if damaged:
        return _repair(identities, device, path, genesis, last_receipt)
    if receipt is None or not restored:
        raise UsageError(f"spool {path}: it is in order; 'maxgreen agent rotate' changes a sound key")
    signer = identities.replace_damaged(receipt.head, genesis)
    return signer, (
        f"the ledger has another history of this key, up to batch {receipt.next_seq}: this spool was set aside, and a "
        "new key goes on after it; its registers begin at 0"
    )


def _repair(
    identities: Identities,
    device: bytes,
    path: Path,
    genesis: bytes,
    last_receipt: Callable[[bytes], Receipt | None],
) -> tuple[Signer, str]:
    """Make a new spool of what is whole: for the same key when its registers are, else for a new one."""
    try:
        copy = salvage.set_aside(path)
        found = salvage.examine(copy)
        if found.tip is not None:
            salvage.rebuild(path, found.kept, genesis)
            return identities.signer(), f"{KEY_STAYS}; {salvage.explain(found)}"
        receipt = last_receipt(device)
        if receipt is None:
            raise Fatal(
                "the broker gave no receipt; ask the operator for the device's last one, and use --receipt FILE"
            )
        messages = salvage.following(found, receipt)
        head = receipt.head
        if messages:
            folder = identities.old_folder(device) / SALVAGED
            head = salvage.spool_of(folder, messages, receipt, genesis)
        signer = identities.replace_damaged(head, genesis)
    except OSError as error:
        raise MediumError(f"{path}: {error.strerror}; free some space, or copy the folder to another medium") from error
    end = receipt.next_seq + len(messages)
    return signer, (
        f"the registers are lost: a new key goes on after batch {end}, and its registers begin at 0; "
        f"batches after the last receipt that are whole and will be delivered: {len(messages)}"
    )
