"""The evidence pack's container."""

import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxgreen.protocol.pack import PackError, parse_pack, read_pack, write_pack

names = st.text("abcdefghij/.0123456789", min_size=1, max_size=20).filter(lambda n: not n.startswith("/"))


@pytest.mark.rule("P-PCK-2")
@given(st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=5))
def test_a_pack_is_a_function_of_its_entries(entries):
    data = write_pack(entries)
    assert write_pack(dict(reversed(entries.items()))) == data
    assert parse_pack(data, "pack") == entries


@pytest.mark.rule("P-PCK-2")
def test_every_changed_byte_is_found_and_names_an_entry():
    data = write_pack({"a.json": b"{}", "b/c.csv": b"seq,received_ms\n"})
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x01
        with pytest.raises(PackError) as caught:
            entries = parse_pack(bytes(broken), "pack")
            raise PackError(f"pack: {sorted(set(entries) - {'a.json', 'b/c.csv'}) or entries}")
        assert "pack" in str(caught.value)


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
