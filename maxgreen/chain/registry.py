"""Miners and storage nodes as the registry has them, and the way in: apply, DAO vote, token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from eth_account.signers.local import LocalAccount

from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import Deployment
from maxgreen.protocol.attestation import prove_possession
from maxgreen.protocol.keys import SPKI_PREFIX, Signer, public_point
from maxgreen.verify.rules import DeviceRecord, Status


class Kind(IntEnum):
    """What a system is."""

    MINER = 0
    STORAGE_NODE = 1

    @property
    def label(self) -> str:
        """The kind as packs write it."""
        return self.name.lower()


_STATUSES: Final = {1: Status.ACTIVE, 2: Status.SUSPENDED, 3: Status.SUSPENDED}


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """A metered channel: role, peak power mW, meter error ppm and mW."""

    number: int
    role: int
    peak_mw: int
    error_ppm: int
    offset_mw: int


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What an applicant states; latitude and longitude in tenths of a degree, None when no place is given."""

    kind: Kind
    channels: tuple[ChannelSpec, ...]
    place_deci: tuple[int, int] | None = None
    efficiency_ppm: int = 1_000_000
    battery_wh: int = 0
    online_required: bool = False
    uri: str = ""


@dataclass(frozen=True, slots=True)
class RegisteredSystem:
    """A registered miner or storage node; `since_ms` is its registration."""

    token: int
    owner: str
    spec: SystemSpec
    since_ms: int
    record: DeviceRecord


def apply_for(deployment: Deployment, applicant: LocalAccount, signer: Signer, spec: SystemSpec) -> int:
    """Apply for a soul-bound token with proof of possession; return the application's id."""
    proof = prove_possession(signer, deployment.network, bytes.fromhex(applicant.address[2:]))
    x, y = public_point(signer.spki)
    latitude, longitude = spec.place_deci or (0, 0)
    system = (
        int(spec.kind),
        (x.to_bytes(32, "big"), y.to_bytes(32, "big")),
        [(c.number, c.role, c.peak_mw, c.error_ppm, c.offset_mw) for c in spec.channels],
        spec.place_deci is not None,
        latitude,
        longitude,
        spec.efficiency_ppm,
        spec.battery_wh,
        spec.online_required,
        spec.uri,
    )
    functions: Any = deployment.registry.functions
    receipt = deployment.chain.transact(applicant, functions.applyFor(system, proof[:32], proof[32:]))
    [event] = deployment.registry.events.Applied().process_receipt(receipt)
    return int(event["args"]["applicationId"])


def admission(deployment: Deployment, applications: Sequence[int]) -> Proposal:
    """Return the proposal that admits applications."""
    functions: Any = deployment.registry.functions
    names = ", ".join(map(str, applications))
    return Proposal(tuple(functions.admit(number) for number in applications), f"Admit applications {names}")


def read_systems(deployment: Deployment) -> dict[bytes, RegisteredSystem]:
    """Return every registered system by device id."""
    return {system.record.device: system for system in each_system(deployment)}


def registrations(deployment: Deployment) -> int:
    """Return how many systems are registered: their tokens are 1 and up."""
    functions: Any = deployment.registry.functions
    return int(deployment.chain.call(functions.registrations()))


def changed_tokens(deployment: Deployment, from_block: int, to_block: int) -> set[int]:
    """Return the tokens that the registry's events of these blocks speak of."""
    return {
        int(event["args"]["tokenId"])
        for event in deployment.chain.all_events(deployment.registry, from_block, to_block)
        if "tokenId" in event["args"]
    }


def each_system(deployment: Deployment, tokens: Iterable[int] | None = None) -> Iterator[RegisteredSystem]:
    """Yield the systems of these tokens, or every one, by token; each takes three calls."""
    chain, registry = deployment.chain, deployment.registry
    functions: Any = registry.functions
    for token in range(1, registrations(deployment) + 1) if tokens is None else tokens:
        history = tuple((at_s * 1000, _STATUSES[status]) for at_s, status in chain.call(functions.historyOf(token)))
        value = chain.call(functions.systemOf(token))
        system = _named(value, registry, "systemOf")
        spki = SPKI_PREFIX + system["key"]["x"] + system["key"]["y"]
        yield RegisteredSystem(
            token=token,
            owner=chain.call(functions.ownerOf(token)),
            spec=_spec(system),
            since_ms=history[0][0],
            record=DeviceRecord(spki, history),
        )


def _spec(system: Mapping[str, Any]) -> SystemSpec:
    return SystemSpec(
        kind=Kind(system["kind"]),
        channels=tuple(
            ChannelSpec(c["number"], c["role"], c["peakMw"], c["errorPpm"], c["offsetMw"]) for c in system["channels"]
        ),
        place_deci=(system["latitudeDeci"], system["longitudeDeci"]) if system["placed"] else None,
        efficiency_ppm=system["efficiencyPpm"],
        battery_wh=system["batteryWh"],
        online_required=system["onlineRequired"],
        uri=system["uri"],
    )


def _named(value: Any, contract: Any, function: str) -> Any:
    """Return a function's tuple answer with the names that its ABI gives."""
    abi = contract.get_function_by_name(function).abi
    return name_fields(abi["outputs"][0], value)


def name_fields(abi: Mapping[str, Any], value: Any) -> Any:
    """Turn ABI tuples into dicts, at every depth."""
    if abi["type"] == "tuple[]":
        return [name_fields({**abi, "type": "tuple"}, element) for element in value]
    if abi["type"] != "tuple":
        return value
    return {c["name"]: name_fields(c, element) for c, element in zip(abi["components"], value, strict=True)}
