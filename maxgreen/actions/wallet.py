"""Accounts as files: keystore version 3 (Web3 Secret Storage), and for trials a bare secret in hex."""

import getpass
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from maxgreen.chain.client import account_from_file
from maxgreen.errors import Fatal, UsageError

PASSWORD_FILE: Final = "MAXGREEN_PASSWORD_FILE"  # noqa: S105 - a variable's name
FOLDER: Final = "MAXGREEN_WALLETS"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LARGEST: Final = 65_536
_SHORTEST_PASSWORD: Final = 8


@dataclass(frozen=True, slots=True)
class Wallet:
    """A wallet of the folder: its name, address and file."""

    name: str
    address: str
    path: Path


def folder() -> Path:
    """Return where wallets are: MAXGREEN_WALLETS, or ~/.config/maxgreen/wallets."""
    return Path(os.environ.get(FOLDER) or Path.home() / ".config/maxgreen/wallets")


def wallets() -> list[Wallet]:
    """Return all wallets, by name."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            address = json.loads(path.read_text())["address"]
            found.append(Wallet(path.stem, str(to_checksum_address(address)), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another file
    return found


def make_wallet(name: str, password: str, secret: bytes | None = None) -> Wallet:
    """Make a wallet with a new key (or a given one); UsageError when the name is taken or no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"wallet name {name!r}: letters, digits, - and _ (at most 64)")
    if len(password) < _SHORTEST_PASSWORD:
        raise UsageError(f"a password has at least {_SHORTEST_PASSWORD} characters")
    path = folder() / f"{name}.json"
    account: LocalAccount = Account.from_key(secret) if secret is not None else Account.create()
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(f"wallet {name}: is there already ({path}); a key is never overwritten") from error
    except OSError as error:
        raise Fatal(f"{path}: {error.strerror}") from error
    with os.fdopen(handle, "w") as file:
        json.dump(account.encrypt(password), file)
        file.flush()
        os.fsync(file.fileno())
    return Wallet(name, account.address, path)


def account_path(which: str) -> Path:
    """Return the file of a wallet's name, or of a path."""
    return folder() / f"{which}.json" if _NAME.fullmatch(which) and not Path(which).exists() else Path(which)


def find_account(which: str) -> tuple[Path, str]:
    """Return the file of a wallet's name, or of a path, and what is in it; Fatal says why there is none."""
    path = account_path(which)
    try:
        if path.stat().st_size > _LARGEST:
            raise Fatal(f"account {path}: too large for a keystore")
        text = path.read_text()
    except OSError as error:
        known = ", ".join(wallet.name for wallet in wallets()) or "none; 'maxgreen wallet new NAME' makes one"
        raise Fatal(f"account {which}: {error.strerror} (wallets: {known})") from error
    except UnicodeDecodeError as error:
        raise Fatal(f"account {path}: neither a keystore nor a secret in hex") from error
    return path, text


def load_account(which: str) -> LocalAccount:
    """Return the account of a wallet's name, a keystore file or a file with a bare secret; Fatal says what is wrong."""
    path, text = find_account(which)
    if not text.lstrip().startswith("{"):
        return account_from_file(path)
    try:
        keystore = json.loads(text)
        secret = Account.decrypt(keystore, read_password(f"password of {path.stem}: "))
    except (ValueError, KeyError, TypeError) as error:
        wrong = "MAC mismatch" in str(error)
        raise Fatal(f"account {path}: {'wrong password' if wrong else 'not a keystore of version 3'}") from error
    account: LocalAccount = Account.from_key(secret)
    return account


def read_password(prompt: str, *, twice: bool = False) -> str:
    """Return a password: from the file that MAXGREEN_PASSWORD_FILE names, else asked for on the terminal."""
    if file := os.environ.get(PASSWORD_FILE):
        try:
            return Path(file).read_text().rstrip("\n")
        except OSError as error:
            raise Fatal(f"{PASSWORD_FILE} {file}: {error.strerror}") from error
    if not sys.stdin.isatty():
        raise Fatal(f"no terminal to ask for a password: set {PASSWORD_FILE} to a file that holds it")
    password = getpass.getpass(prompt)
    if twice and getpass.getpass("again: ") != password:
        raise UsageError("the two passwords differ")
    return password
