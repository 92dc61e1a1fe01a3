"""Signing in with a wallet (EIP-4361): the server writes the text, the wallet signs it, nobody has a password."""

import secrets
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak

from dapp.keep import Keep
from maxgreen.chain.client import Chain
from maxgreen.errors import UsageError

_STATEMENT: Final = "Sign in to MaxCoin Green Energy. This sends nothing and costs nothing."
_MOST_SIGNATURE: Final = 4_096  # bytes; a contract's may be long
_ERC1271: Final = bytes.fromhex("1626ba7e")


def text_to_sign(keep: Keep, url: str, chain_id: int, address: str, now_ms: int) -> str:
    """Return the text that an account signs, and keep it; UsageError when that is no address."""
    if not is_address(address):
        raise UsageError(f"address {address[:60]!r}: expected 0x and 40 hex digits")
    nonce = secrets.token_hex(12)
    issued = datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = (
        f"{urlsplit(url).netloc} wants you to sign in with your Ethereum account:\n{to_checksum_address(address)}\n\n"
        f"{_STATEMENT}\n\nURI: {url}\nVersion: 1\nChain ID: {chain_id}\nNonce: {nonce}\nIssued At: {issued}"
    )
    keep.add_nonce(nonce, text, now_ms)
    return text


def sign_in(keep: Keep, chain: Chain, text: str, signature: str, now_ms: int) -> tuple[str, str]:
    """Return who signed a text that we wrote, and the secret of a session; UsageError says what is wrong.

    The nonce is used up by every attempt.
    """
    nonce = text.partition("\nNonce: ")[2].partition("\n")[0]
    if keep.use_nonce(nonce, now_ms) != text:
        raise UsageError("this is not what was asked for, or it took more than five minutes; sign in again")
    address = text.split("\n", 2)[1]
    try:
        signed = bytes.fromhex(signature.removeprefix("0x"))
    except ValueError as error:
        raise UsageError("the signature is not hex") from error
    if len(signed) > _MOST_SIGNATURE:
        raise UsageError("the signature is too long")
    if _signer(text, signed) != address and not _contract_agrees(chain, address, text, signed):
        raise UsageError(f"this is not the signature of {address}; is another account chosen in the wallet?")
    return address, keep.begin_session(address, now_ms)


def _signer(text: str, signature: bytes) -> str:
    try:
        return str(Account.recover_message(encode_defunct(text=text), signature=signature))
    except Exception:  # noqa: BLE001 - any bytes may come, and eth-account has no one error for them
        return ""


def _contract_agrees(chain: Chain, address: str, text: str, signature: bytes) -> bool:
    """Ask a contract whether it signed (ERC-1271); what answers anything else did not."""
    message = text.encode()
    digest = keccak(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)
    asked = _ERC1271 + abi_encode(["bytes32", "bytes"], [digest, signature])
    return chain.ask_once(address, asked)[:32] == _ERC1271.ljust(32, b"\0")
