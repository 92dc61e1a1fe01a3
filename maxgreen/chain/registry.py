"""Miners and storage nodes as the registry has them, and the way in: apply, DAO vote, token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from web3.logs import DISCARD

from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import Deployment
from maxgreen.errors import Retryable
from maxgreen.protocol.attestation import prove_possession
from maxgreen.protocol.keys import SPKI_PREFIX, Signer, key_id, public_point
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from maxgreen.verify.rules import DeviceRecord, Status, valid_at

_FOREVER: Final = 2**64 - 1
_STATUSES: Final = {1: Status.ACTIVE, 2: Status.SUSPENDED, 3: Status.SUSPENDED}


@dataclass(frozen=True, slots=True)
class Application:
    """What somebody applied with; `token` is 0 while it waits, `content` the digest that the device signed."""

    number: int
    applicant: str
    token: int
    content: bytes
    spki: bytes
    spec: SystemSpec


@dataclass(frozen=True, slots=True)
class RegisteredSystem:
    """A registered miner or storage node with one of its keys; `since_ms` is when that began to count."""

    token: int
    owner: str
    spec: SystemSpec
    since_ms: int
    record: DeviceRecord
    key_number: int = 0


def apply_for(deployment: Deployment, applicant: LocalAccount, signer: Signer, spec: SystemSpec) -> int:
    """Apply for a soul-bound token with the device's own signature; return the application's id."""
    nonce = nonce_of(deployment, key_id(signer.spki))
    owner = bytes.fromhex(applicant.address[2:])
    proof = prove_possession(signer, deployment.network, owner, nonce, spec.digest)
    return apply_with(deployment, applicant, signer.spki, proof, spec)


def apply_with(deployment: Deployment, applicant: LocalAccount, spki: bytes, proof: bytes, spec: SystemSpec) -> int:
    """Apply with a proof that the device made before (`maxgreen agent prove`); return the application's id."""
    functions: Any = deployment.registry.functions
    latitude, longitude = spec.place_deci or (0, 0)
    system = (
        int(spec.kind),
        key_words(spki),
        [(c.number, c.role, c.peak_mw, c.error_ppm, c.offset_mw) for c in spec.channels],
        spec.place_deci is not None,
        latitude,
        longitude,
        spec.efficiency_ppm,
        spec.battery_wh,
        spec.online_required,
        spec.uri,
    )
    receipt = deployment.chain.transact(applicant, functions.applyFor(system, proof[:32], proof[32:]))
    for event in deployment.registry.events.Applied().process_receipt(receipt, errors=DISCARD):
        if event["address"] == deployment.registry.address:
            return int(event["args"]["applicationId"])
    raise Retryable("the chain's RPC gave a receipt without the application: look with 'maxgreen owner status'")


def rotate(deployment: Deployment, owner: LocalAccount, token: int, spki: bytes, hand_over: bytes, proof: bytes) -> Any:
    """Give a system's key its successor: the old key handed over, the new one proved possession (P-ID-6)."""
    functions: Any = deployment.registry.functions
    call = functions.rotateKey(token, key_words(spki), _halves(hand_over), _halves(proof))
    return deployment.chain.transact(owner, call)


def request_replacement(deployment: Deployment, owner: LocalAccount, token: int, spki: bytes, proof: bytes) -> Any:
    """Ask the DAO to replace a system's key that is lost, with the new device's proof."""
    functions: Any = deployment.registry.functions
    return deployment.chain.transact(owner, functions.requestKey(token, key_words(spki), *_halves(proof)))


def _halves(signature: bytes) -> list[bytes]:
    return [signature[:32], signature[32:]]


def key_words(spki: bytes) -> tuple[bytes, bytes]:
    """Return a public key's x and y as contracts take them."""
    x, y = public_point(spki)
    return x.to_bytes(32, "big"), y.to_bytes(32, "big")


def nonce_of(deployment: Deployment, device: bytes) -> int:
    """Return how many applications of a device there were: the next one signs this number."""
    functions: Any = deployment.registry.functions
    return int(deployment.chain.call(functions.nonceOf(device)))


def application(deployment: Deployment, number: int) -> Application:
    """Return an application; its `applicant` is empty when there is none."""
    functions: Any = deployment.registry.functions
    value = _named(deployment.chain.call(functions.applicationOf(number)), deployment.registry, "applicationOf")
    known = int(value["applicant"], 16) != 0
    return Application(
        number=number,
        applicant=str(value["applicant"]) if known else "",
        token=int(value["tokenId"]),
        content=bytes(value["content"]),
        spki=SPKI_PREFIX + value["system"]["key"]["x"] + value["system"]["key"]["y"],
        spec=_spec(value["system"]),
    )


def admission(deployment: Deployment, applications: Sequence[int]) -> Proposal:
    """Return the proposal that admits applications, with the content that they have now."""
    functions: Any = deployment.registry.functions
    calls = tuple(functions.admit(number, application(deployment, number).content) for number in applications)
    return Proposal(calls, f"Admit applications {', '.join(map(str, applications))}")


def read_systems(deployment: Deployment) -> dict[bytes, RegisteredSystem]:
    """Return every registered system by device id."""
    return {system.record.device: system for system in each_system(deployment)}


def systems_of(deployment: Deployment, tokens: Iterable[int]) -> dict[bytes, RegisteredSystem]:
    """Return the systems of these tokens by device id, with every key that they ever had."""
    known = registrations(deployment)
    there = [token for token in tokens if 0 < token <= known]
    return {system.record.device: system for system in each_key(deployment, there)}


def module_history(deployment: Deployment, name: str) -> list[bytes]:
    """Return the digests of a module's versions, oldest first; none when the DAO never registered it."""
    contract = deployment.chain.contract("ModuleRegistry", deployment.addresses.modules)
    history = _named(deployment.chain.call(contract.functions.historyOf(name)), contract, "historyOf")
    return [bytes(module["digest"]) for module in history]


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
    """Yield the systems of these tokens, or every one, with the key that counts now; each takes five calls."""
    for keys in _each(deployment, tokens):
        yield keys[-1]


def each_key(deployment: Deployment, tokens: Iterable[int] | None = None) -> Iterator[RegisteredSystem]:
    """Yield the systems of these tokens, or every one, once for each key that they ever had, oldest first (P-ID-6)."""
    for keys in _each(deployment, tokens):
        yield from keys


def _each(deployment: Deployment, tokens: Iterable[int] | None) -> Iterator[list[RegisteredSystem]]:
    chain, registry = deployment.chain, deployment.registry
    functions: Any = registry.functions
    for token in range(1, registrations(deployment) + 1) if tokens is None else tokens:
        history = tuple((at_s * 1000, _STATUSES[status]) for at_s, status in chain.call(functions.historyOf(token)))
        spec = _spec(_named(chain.call(functions.systemOf(token)), registry, "systemOf"))
        owner = chain.call(functions.ownerOf(token))
        found: list[RegisteredSystem] = []
        for number in range(chain.call(functions.keyCount(token))):
            key = _named(chain.call(functions.keyAt(token, number)), registry, "keyAt")
            since_ms = key["from"] * 1000
            record = DeviceRecord(
                SPKI_PREFIX + key["key"]["x"] + key["key"]["y"],
                _from(history, since_ms),
                tuple((c.number, c.role) for c in spec.channels),
                found[-1].record.device if found else None,
                key["to"] * 1000 if key["to"] < _FOREVER else None,
                bool(key["lost"]),
            )
            found.append(RegisteredSystem(token, owner, spec, since_ms, record, number))
        yield found


def _from(history: tuple[tuple[int, Status], ...], since_ms: int) -> tuple[tuple[int, Status], ...]:
    """Return the statuses of a key that counts from a time on: the one of then, and all later ones."""
    return ((since_ms, valid_at(history, since_ms)), *(entry for entry in history if entry[0] > since_ms))


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
