"""The evidence pack's container."""

import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxgreen.protocol.pack import PackError, parse_pack, read_pack, write_pack

names = st.from_regex(r"[a-zA-Z0-9_][a-z0-9_.-]{0,9}(/[a-z0-9_][a-z0-9_.-]{0,9})?", fullmatch=True)


@pytest.mark.rule("P-PCK-2")
@given(st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=5))
def test_a_pack_is_a_function_of_its_entries(entries):
    data = write_pack(entries)
    assert write_pack(dict(reversed(entries.items()))) == data
    assert parse_pack(data, "pack") == entries


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../b", "a\x1b[31m", "", "a/b/c", ".", "a//b"])
def test_a_name_that_is_none_of_an_entrys_is_refused(name):
    with pytest.raises(PackError, match="no name of an entry"):
        parse_pack(write_pack({name: b"x"}), "pack")


@pytest.mark.rule("P-PCK-2")
@pytest.mark.parametrize("bit", [0x01, 0x10, 0x80])
def test_every_changed_byte_is_found_and_names_the_entry_it_belongs_to(bit):
    data = write_pack({"a.json": b"{}", "b/c.csv": b"seq,received_ms\n"})
    owners = _owners(data, ["a.json", "b/c.csv"])
    for position, owner in enumerate(owners):
        broken = bytearray(data)
        broken[position] ^= bit
        with pytest.raises(PackError) as caught:
            parse_pack(bytes(broken), "pack")
        record = data.index(owner.encode()) - 30
        name_changed = position in range(record + 26, record + 28) or position in range(
            record + 30, record + 30 + len(owner)
        )
        told = "at entry '" if name_changed else f"at entry '{owner}"
        assert told in str(caught.value), position


@pytest.mark.rule("P-PCK-2")
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda _: b"", lambda _: b"PK"])
def test_a_shortened_or_lengthened_pack_is_refused(damage):
    with pytest.raises(PackError, match="is not as the format has it"):
        parse_pack(damage(write_pack({"a.json": b"{}"})), "pack")


def _owners(data: bytes, names: list[str]) -> list[str]:
    starts = [(data.index(mark), names[0]) for mark in (b"PK\3\4", b"PK\1\2")]
    starts += [(data.index(mark, data.index(mark) + 4), names[1]) for mark in (b"PK\3\4", b"PK\1\2")]
    return [max((start, name) for start, name in starts if start <= position)[1] for position in range(len(data))]


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_the_typed_error(data):
    with pytest.raises(PackError):
        parse_pack(data, "pack")


def test_the_form_is_plain_zip(tmp_path):
    path = tmp_path / "pack.zip"
    path.write_bytes(write_pack({"b": b"2", "a": b"1"}))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a", "b"]
        info = archive.infolist()[0]
    assert (info.compress_type, info.date_time, info.extra, info.flag_bits) == (0, (1980, 1, 1, 0, 0, 0), b"", 0)
    assert read_pack(path) == {"a": b"1", "b": b"2"}
    with pytest.raises(PackError, match="nowhere"):
        read_pack(tmp_path / "nowhere")
