"""An evidence store in a bucket of any S3-compatible service."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from maxgreen.errors import Fatal
from maxgreen.store import AbsentError, StoreAwayError, checked

T = TypeVar("T")
_ABSENT: Final = {"404", "NoSuchKey", "NotFound"}
_REFUSED: Final = {"403", "AccessDenied", "InvalidAccessKeyId", "NoSuchBucket", "SignatureDoesNotMatch"}
_CONFIG: Final = Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 3, "mode": "standard"})


def open_bucket(where: str) -> "BucketStore":
    """Open `s3://BUCKET/PREFIX?endpoint=URL`; Fatal when it is none, or there are no keys for it."""
    address = urlsplit(where)
    endpoint = parse_qs(address.query).get("endpoint", [None])[0]
    if not address.netloc:
        raise Fatal(f"evidence store {where!r}: it names no bucket; expected s3://BUCKET/PREFIX?endpoint=URL")
    prefix = address.path.strip("/")
    try:
        return BucketStore(endpoint, address.netloc, f"{prefix}/" if prefix else "")
    except (BotoCoreError, ValueError) as error:
        raise Fatal(f"evidence store {where}: {error}") from error


class BucketStore:
    """A bucket."""

    def __init__(self, endpoint: str | None, bucket: str, prefix: str) -> None:
        """Every name begins with `prefix` there."""
        self._endpoint, self._bucket, self._prefix = endpoint, bucket, prefix
        self._clients: dict[int, Any] = {}
        self._making = threading.Lock()
        self._client  # noqa: B018 - what cannot be opened is said now

    @property
    def _client(self) -> Any:
        """boto3's client, of this process: two that share a connection get each other's answers."""
        with self._making:
            if os.getpid() not in self._clients:
                self._clients = {os.getpid(): boto3.client("s3", endpoint_url=self._endpoint, config=_CONFIG)}
            return self._clients[os.getpid()]

    def put(self, name: str, data: bytes) -> None:
        """Keep `data`."""
        self._ask(name, lambda key: self._client.put_object(**key, Body=data))

    def get(self, name: str) -> bytes:
        """Return what has a name."""
        found: bytes = self._ask(name, lambda key: self._client.get_object(**key)["Body"].read())
        return found

    def has(self, name: str) -> bool:
        """Tell whether there is something of a name."""
        try:
            self._ask(name, lambda key: bool(self._client.head_object(**key)))
        except AbsentError:
            return False
        return True

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin so."""
        pages, whole = self._client.get_paginator("list_objects_v2"), self._prefix + prefix

        def listed(key: dict[str, str]) -> list[str]:
            found = pages.paginate(Bucket=key["Bucket"], Prefix=whole)
            return [one["Key"] for page in found for one in page.get("Contents", ())]

        yield from sorted(key[len(self._prefix) :] for key in self._ask(None, listed))

    def _ask(self, name: str | None, ask: Callable[[dict[str, str]], T]) -> T:
        where = f"evidence store s3://{self._bucket}"
        key = {"Bucket": self._bucket, "Key": self._prefix + ("" if name is None else checked(name))}
        try:
            return ask(key)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise AbsentError(f"{where}: it has no {name}") from error
            raise (Fatal if code in _REFUSED else StoreAwayError)(f"{where}: {error}") from error
        except (BotoCoreError, OSError) as error:
            raise StoreAwayError(f"{where}: {error}") from error
