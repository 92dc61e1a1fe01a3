"""What an agent tells its owner: a frozen snapshot, and the alarms that follow from it, each with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from maxgreen.protocol.backend import Rejection
from maxgreen.protocol.reasons import Reason
from maxgreen.units import counted

ALARM_CODES: Final = (
    *("board", "case_open", "medium", "lost", "key", "contradiction", "damaged", "missing", "earlier_key"),
    *("unknown_key", "refused", "denied", "no_receipt", "rejected", "not_paid", "mining", "sensor"),
)
_CURES: Final = {
    Reason.WRONG_ROLE: "see the roles of [[channels]]: they must be those of the registration",
    Reason.FUTURE_TIME: "its clock was ahead; see whether it is right now, and restart the machine",
    Reason.BAD_ATTESTATION: "its clock went back by minutes; see whether it is right now, and restart the machine",
    Reason.TIME_OVERLAP: "its clock went back over what was measured before; see whether it is right now",
    Reason.SUSPENDED_DEVICE: "the system is suspended; ask the DAO, which can reinstate it",
}
SENSOR_DEAD_S: Final = 60.0
UNANSWERED_S: Final = 240.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that only a person can put right."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Signs:
    """What alarms are judged by; empty strings and None mean that nothing is wrong."""

    device: str = ""
    contradiction: str | None = None
    missing: str | None = None
    damaged: Sequence[int] = ()
    earlier_key: str = ""
    unknown_key: str | None = None
    denied: str | None = None
    refused: str | None = None
    unanswered_s: float = 0.0  # how long the backend has not answered what was sent
    ever_answered: bool = True
    rejected: tuple[int, int] | None = None  # seq and reason of the newest verdict, where it is that a batch counts not
    not_paid: Rejection | None = None  # what the DAO said of the order that this device's energy is in
    key_fault: str = ""
    medium_fault: str = ""
    lost_ticks: int = 0
    mining_fault: str = ""
    board_fault: str = ""
    case_open: bool = False
    dead_s: Mapping[int, float] = field(default_factory=dict)  # channel: how long its sensor has failed


def alarms(signs: Signs) -> list[Alarm]:
    """Return what needs a person, most urgent first."""
    return [*_of_the_device(signs), *_of_the_chain(signs), *_of_the_backend(signs), *_of_the_sensors(signs)]


def _of_the_device(signs: Signs) -> Iterator[Alarm]:
    if signs.board_fault:
        text = f"relay, case switch or light: {signs.board_fault}; the relay is kept open; check the wiring"
        yield Alarm("board", text)
    if signs.case_open:
        yield Alarm("case_open", "the case is open; no transfer begins; close it")
    if signs.medium_fault:
        yield Alarm("medium", f"{signs.medium_fault}; readings wait in memory: free space, or replace the card")
    if signs.lost_ticks:
        rounds = counted(signs.lost_ticks, "round")
        yield Alarm("lost", f"memory was full, and {rounds} of readings did not stay; see the other alarms")
    if signs.key_fault:
        text = f"signing key: {signs.key_fault}; readings wait in memory: put the token back, or check [key]"
        yield Alarm("key", text)
    if signs.mining_fault:
        text = f"mining failed: {signs.mining_fault}; it is tried again; 'maxgreen selftest scrypt' may say more"
        yield Alarm("mining", text)


def _of_the_chain(signs: Signs) -> Iterator[Alarm]:
    if signs.contradiction:
        yield Alarm(
            "contradiction",
            f"{signs.contradiction}; nothing is sent, everything is kept. Was an old card image restored? Then stop "
            "the agent and run 'maxgreen agent recover'; else ask the operator",
        )
    if signs.damaged:
        numbers = ", ".join(map(str, sorted(signs.damaged)[:5])) + (", …" if len(signs.damaged) > 5 else "")
        yield Alarm(
            "damaged",
            f"the medium changed what is not sent any more: batch {numbers}. Stop the agent, run "
            "'maxgreen agent recover', and ask the operator to skip what is lost; think of a new card",
        )
    if signs.missing:
        text = f"{signs.missing}; ask the operator to skip what is gone (maxgreen ingest decide skip)"
        yield Alarm("missing", text)
    if signs.earlier_key:
        text = f"an earlier key's batches can't be delivered: {signs.earlier_key}; see what the operator's ledger lacks"
        yield Alarm("earlier_key", text)


def _of_the_backend(signs: Signs) -> Iterator[Alarm]:
    if signs.unknown_key:
        text = f"receipts do not count: {signs.unknown_key}; ask the operator for backend_keys"
        yield Alarm("unknown_key", text)
    if signs.refused:
        text = f"the broker refuses this device: {signs.refused}; ask the operator for its certificate"
        yield Alarm("refused", text)
    if signs.denied:
        text = f"the broker refuses {signs.denied}; ask the operator: does the certificate name this device?"
        yield Alarm("denied", text)
    if signs.unanswered_s >= UNANSWERED_S:
        minutes = f"{signs.unanswered_s / 60:.0f} minutes"
        text = (
            f"the backend has not answered for {minutes}; batches are kept; if it lasts, ask the operator"
            if signs.ever_answered
            else f"the broker takes this device's batches, and the backend has not answered for {minutes}: "
            f"is device {signs.device} registered? Ask the operator"
        )
        yield Alarm("no_receipt", text)
    if signs.rejected:
        seq, number = signs.rejected
        reason = Reason(number) if number in list(Reason) else None
        cure = _CURES.get(reason, "ask the operator what is wrong with it") if reason else "ask the operator"
        label = reason.label if reason else f"reason {number}"
        yield Alarm("rejected", f"batch {seq} does not count ({label}), nor may those after it; {cure}")
    if signs.not_paid:
        ended = datetime.fromtimestamp(signs.not_paid.until_s, UTC)
        words = repr(signs.not_paid.text) if signs.not_paid.text else f"code {signs.not_paid.code}"
        text = (
            f"the DAO did not approve what was measured until {ended:%Y-%m-%d %H:%M} UTC: {words}; nothing is lost, it "
            "is closed again or comes with the next period; see your statement for what to do"
        )
        yield Alarm("not_paid", text)


def _of_the_sensors(signs: Signs) -> Iterator[Alarm]:
    for channel, seconds in sorted(signs.dead_s.items()):
        if seconds >= SENSOR_DEAD_S:
            yield Alarm(
                "sensor",
                f"channel {channel} has given no reading for {counted(round(seconds / 60), 'minute')}; check the "
                "wiring, and run 'maxgreen agent sensors'",
            )


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """A channel: power W (None: no reading), energy J since the key's first batch, Wh today."""

    role: str
    power_w: float | None
    energy_j: float
    today_wh: float


@dataclass(frozen=True, slots=True)
class Report:
    """An agent as it is at an instant."""

    time: str  # UTC, as the device's clock has it
    boot_ms: int  # the same instant in ms since boot
    device: str
    channels: Mapping[int, ChannelReport]
    seq: int
    waiting: int
    stalled: int
    spool_bytes: int
    receipt: Mapping[str, int] | None
    connected: bool
    synchronised: bool
    cpu_c: float | None
    mining: str
    mining_paused: bool | None
    interval_ms: int
    transfer: str | None
    proof_windows: Mapping[str, Any]
    alarms: Sequence[Alarm]

    def to_json(self) -> dict[str, Any]:
        """Return what `maxgreen agent status --json` prints."""
        value = {name: getattr(self, name) for name in self.__slots__ if name not in {"channels", "alarms"}}
        value["channels"] = {
            str(number): {name: getattr(channel, name) for name in channel.__slots__}
            for number, channel in self.channels.items()
        }
        value["alarms"] = [alarm.text for alarm in self.alarms]
        value["alarm_codes"] = [alarm.code for alarm in self.alarms]
        return value

    def to_home_assistant(self) -> dict[str, Any]:
        """Return the state message for people and Home Assistant; a lost channel's power is null."""
        return {
            "power_w": {str(n): channel.power_w for n, channel in self.channels.items()},
            "energy_kwh": {str(n): channel.energy_j / 3.6e6 for n, channel in self.channels.items()},
            "cpu_c": self.cpu_c,
            "spool": self.waiting,
            "seq": self.seq,
            "alarms": [alarm.text for alarm in self.alarms],
        }
