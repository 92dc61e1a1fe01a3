"""Evidence stores: one suite for a folder and for a bucket of an S3-compatible server."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from moto.server import ThreadedMotoServer

from maxgreen.errors import Fatal
from maxgreen.store import AbsentError, FolderStore, StoreAwayError, open_store
from tests.conftest import free_port


@pytest.fixture(scope="module")
def server():
    port = free_port()
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    served.start()
    yield f"http://127.0.0.1:{port}"
    served.stop()


@pytest.fixture(params=["folder", "bucket", "bucket with a prefix"])
def where(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return str(tmp_path / "store")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    url, bucket = request.getfixturevalue("server"), f"evidence-{abs(hash(str(tmp_path))) % 10**9}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    return f"s3://{bucket}{'/of/solar' if 'prefix' in request.param else ''}?endpoint={url}"


def test_what_is_put_is_there_under_its_name_and_no_other(where):
    store = open_store(where)
    assert list(store.names("")) == []
    store.put("segments/ab.cbor", b"one")
    store.put("segments/cd.cbor", b"")
    store.put("runs/2026-10/ef.json", bytes(2**20))
    assert store.get("segments/ab.cbor") == b"one"
    assert store.get("segments/cd.cbor") == b""
    assert len(store.get("runs/2026-10/ef.json")) == 2**20
    assert (store.has("segments/ab.cbor"), store.has("segments/abc")) == (True, False)
    assert list(store.names("segments/")) == ["segments/ab.cbor", "segments/cd.cbor"]
    assert len(list(open_store(where).names(""))) == 3
    with pytest.raises(AbsentError, match="segments/xy"):
        store.get("segments/xy")
    store.put("segments/ab.cbor", b"again")
    assert store.get("segments/ab.cbor") == b"again"
    for name in ("../up", "/etc/passwd", "", "a//b", "a/../b", ".hidden", "a b", "a\0"):
        with pytest.raises(ValueError, match="no name"):
            store.put(name, b"")


def test_many_who_put_the_same_at_once_leave_it_whole(where):
    data = os.urandom(200_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: open_store(where).put("segments/ab.cbor", data), range(24)))
    store = open_store(where)
    assert store.get("segments/ab.cbor") == data
    assert list(store.names("")) == ["segments/ab.cbor"]


def test_a_folder_that_takes_nothing_is_away_and_says_why(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreAwayError, match="File exists"):
        FolderStore(tmp_path / "file").put("a", b"")
    with pytest.raises(AbsentError):
        FolderStore(tmp_path / "file").get("a")


def test_a_bucket_that_is_not_there_is_for_a_person_and_a_server_that_is_not_for_later(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(Fatal, match="NoSuchBucket"):
        open_store(f"s3://nowhere?endpoint={server}").put("a", b"")
    with pytest.raises(StoreAwayError):
        open_store(f"s3://nowhere?endpoint=http://127.0.0.1:{free_port()}").put("a", b"")


@pytest.mark.parametrize("where", ["", "ftp://host/x", "s3://", "s3:///prefix", "s3://b?endpoint=nonsense"])
def test_what_is_no_store_is_said_at_once(where):
    with pytest.raises(Fatal, match="evidence store"):
        open_store(where)


def test_a_reader_never_sees_half_of_what_is_written(tmp_path):
    store, stop, seen = FolderStore(tmp_path / "store"), threading.Event(), set()
    store.put("runs/a.order", bytes(10**6))

    def read():
        while not stop.is_set():
            seen.add(len(store.get("runs/a.order")))

    reader = threading.Thread(target=read)
    reader.start()
    for size in (10**6, 2 * 10**6) * 20:
        store.put("runs/a.order", bytes(size))
    stop.set()
    reader.join()
    assert seen <= {10**6, 2 * 10**6}


def test_a_process_that_was_forked_shares_no_connection_with_its_parent(server, monkeypatch):
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = open_store(f"s3://evidence?endpoint={server}")
    own = store._client
    assert store._client is own
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert store._client is not own
