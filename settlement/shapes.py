"""The shapes of a pack's JSON entries, with the bound of every number (docs/protocol.md, Evidence pack)."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, FailFast, Field, StrictBool, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from maxgreen.protocol.batch import MAX_SENSORS, MAX_SEQ
from maxgreen.protocol.pack import ORDER, RUN, PackError, read_canonical

_CONFIG: Final = ConfigDict(strict=True, extra="forbid")
_TEXT_BYTES: Final = 4_096
_MOST: Final = 100_000  # elements of an array


_LINES: Final = 1_000_000
_KEYS: Final = 1_024  # of both ends
_FILES: Final = 64
_REASONS: Final = 64
_ENTRY_BYTES: Final = 4 * 2**20
_RUN_BYTES: Final = 2**30
_BYTES_A_VALUE: Final = 6  # no entry has more values to its bytes: what would fill memory is refused before
_SMALL: Final = 65_535

Seconds = Annotated[int, Field(strict=True, ge=0, le=2**40)]
Millis = Annotated[int, Field(strict=True, ge=0, le=2**50)]
Seq = Annotated[int, Field(strict=True, ge=0, le=MAX_SEQ + 1)]
Ppm = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Word = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Small = Annotated[int, Field(strict=True, ge=0, le=_SMALL)]
Role = Annotated[int, Field(strict=True, ge=0, le=4)]
Bits = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
Elevation = Annotated[int, Field(strict=True, ge=-90_000, le=90_000)]
Number = Annotated[str, Field(strict=True, pattern=r"^(0|[1-9][0-9]{0,77})$")]  # decimal, below 2^256
Signed = Annotated[str, Field(strict=True, pattern=r"^(0|-?[1-9][0-9]{0,77})$")]
Text = Annotated[str, Field(strict=True, max_length=_TEXT_BYTES)]
Degrees = Annotated[float, Field(strict=True, ge=-180, le=180, allow_inf_nan=False)]
Device = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{32}$")]
Hash = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
Hashes = Annotated[list[Hash], Field(max_length=_MOST), FailFast()]
Spki = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{182}$")]
Address = Annotated[str, Field(strict=True, pattern=r"^0x[0-9a-fA-F]{40}$")]
Transaction = Annotated[str, Field(strict=True, pattern=r"^0x[0-9a-f]{64}$")]
Network = Annotated[str, Field(strict=True, pattern=r"^eip155:[0-9]{1,20}:0x[0-9a-f]{40}$")]
Period = Annotated[str, Field(strict=True, pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")]


class _Strict(TypedDict):
    __pydantic_config__ = _CONFIG  # type: ignore[misc]


class _Status(_Strict):
    from_ms: Millis
    status: Literal["active", "suspended"]


class _Channel(_Strict):
    from_ms: Millis
    channel: Small
    role: Role
    peak_mw: Word
    error_ppm: Ppm
    offset_mw: Word


class _Party(_Strict):
    id: Device
    spki: Spki
    kind: Literal["miner", "storage_node"]
    token: Number
    status: Annotated[list[_Status], Field(min_length=1, max_length=_MOST), FailFast()]
    channels: Annotated[list[_Channel], Field(max_length=MAX_SENSORS), FailFast()]
    latitude: Degrees | None
    longitude: Degrees | None
    efficiency_ppm: Ppm
    battery_wh: Word
    online_required: StrictBool
    key: Small
    until_ms: Millis | None
    lost: StrictBool
    predecessor: Device | None


class _Attested(_Strict):
    time: Seconds
    seq: Seq
    register: Number
    key: Small


class _Opened(_Strict):
    sent: _Attested
    received: _Attested


class _Base(_Strict):
    until: Seconds
    sent_mws: Number
    received_mws: Number
    expected_mws: Number
    error_mws: Number
    matched_mws: Number


class _Register(_Strict):
    key: Small
    register: Number
    carried: Number


class _Known(_Strict):
    sent: _Register
    received: _Register


class _Line(_Strict):
    id: Hash
    miner: Number
    miner_channel: Small
    node: Number
    node_channel: Small
    epoch: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    resistance_uohm: Word
    loss_ppm: Ppm
    max_loss_ppm: Ppm
    opened: _Opened
    base: _Base
    closed: Seconds
    known: _Known
    paid_mws: Number
    paid_until: Seconds
    acc: Number


class _Limits(_Strict):
    from_ms: Millis
    future_s: Seconds
    late_s: Seconds
    grace_s: Seconds
    shares_per_window: Word
    capacity_ppm: Ppm
    stuck_s: Seconds
    pow_nbits_min: Bits
    beacon_valid_s: Seconds
    close_days: Small
    beacon_every_s: Seconds
    night_mdeg: Elevation
    behind_s: Seconds
    edge_ms: Millis
    unmetered_ppm: Ppm


class _Decision(_Strict):
    device: Device
    from_seq: Seq
    to_seq: Seq
    action: Literal["skip", "release", "reject", "reinstate", "continue"]
    reason: Text
    who: Text
    at_ms: Millis
    text: Text


class _Manifest(_Strict):
    version: Literal[2]
    network: Network
    period: Period
    until: Seconds
    start: Seconds
    line: Hash
    previous: Hash | None
    segments: Annotated[
        dict[Device, Annotated[list[Hash], Field(max_length=_MOST), FailFast()]], Field(max_length=_KEYS)
    ]
    files: Annotated[dict[str, Hash], Field(max_length=_FILES)]


class _RunLine(_Strict):
    line: Hash
    manifest: Hash
    miner: Number
    node: Number
    sent_mws: Number
    received_mws: Number
    loss_mws: Signed
    expected_loss_mws: Number
    error_mws: Number
    counted_windows: Seconds
    held: Annotated[dict[str, Number], Field(max_length=_REASONS)]
    disputed: Annotated[dict[str, Number], Field(max_length=_REASONS)]
    sent_reverse_mws: Number
    received_reverse_mws: Number
    payable_total_mws: Number
    paid_before_mws: Number
    payable_mws: Number
    mint_wei: Number
    online_windows: Seconds
    hashes: Number
    to_register: Number
    received_to: Number
    decisions: Annotated[list[_Decision], Field(max_length=_MOST), FailFast()]
    trouble: Text


class _Attestation(_Strict):
    channel: Small
    time: Seconds
    register: Number
    seq: Seq
    signature: Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{128}$")]


class _Closing(_Strict):
    miner_end: StrictBool
    key: Small
    attestation: _Attestation | None


class _Claim(_Strict):
    line: Hash
    payable_total_mws: Number
    manifest: Hash
    proof: Annotated[list[Hash], Field(max_length=64), FailFast()]
    sent: _Attestation
    received: _Attestation
    closings: Annotated[list[_Closing], Field(max_length=_SMALL), FailFast()]


class _Posting(_Strict):
    until: Seconds
    root: Hash
    count: Seconds
    total_mws: Number
    manifest: Hash
    evidence: Text


class _Order(_Strict):
    chain_id: Word
    contracts: Annotated[dict[str, Address], Field(max_length=64)]
    order: Word
    posting: _Posting
    claims: Annotated[list[_Claim], Field(max_length=_LINES), FailFast()]
    transactions: Annotated[dict[str, Transaction], Field(max_length=8)]


class _Run(_Strict):
    version: Literal[2]
    network: Network
    period: Period
    until: Seconds
    revision: Small
    previous: Hash | None
    lines: Annotated[list[_RunLine], Field(max_length=_LINES), FailFast()]
    root: Hash | None
    count: Seconds
    total_mws: Number


def _array(shape: Any, most: int = _MOST) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[list[shape], Field(max_length=most), FailFast()])


MANIFEST_SHAPE: Final = TypeAdapter[Any](_Manifest)
ORDER_SHAPE: Final = TypeAdapter[Any](_Order)
RUN_SHAPE: Final = TypeAdapter[Any](_Run)
DEVICES_SHAPE: Final = _array(_Party)
LINE_SHAPE: Final = TypeAdapter[Any](_Line)
LIMITS_SHAPE: Final = TypeAdapter[Any](Annotated[list[_Limits], Field(min_length=1, max_length=_MOST), FailFast()])
DECISIONS_SHAPE: Final = _array(_Decision)
KEYS_SHAPE: Final = _array(Spki)


def bounded(name: str, data: bytes) -> bytes:
    """Return the bytes of a JSON entry; PackError where reading them would take memory out of all proportion."""
    most = _RUN_BYTES if name in {RUN, ORDER} else _ENTRY_BYTES
    values = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > most or values > 1_000 + len(data) // _BYTES_A_VALUE:
        raise PackError(f"{name}: {len(data)} bytes, {values} values: more than it may have")
    return data


def read_shape(entries: Mapping[str, bytes], name: str, shape: TypeAdapter[Any]) -> Any:
    """Return the value of a JSON entry that has a shape; PackError says where it has another."""
    if name not in entries:
        raise PackError(f"{name}: missing")
    value = read_canonical(name, bounded(name, entries[name]))
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise PackError(f"{name}: {where or 'it'}: {first['msg']}") from error
