"""What owners of miners and storage nodes do on the chain."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from maxgreen.actions.catalog import Action, Context, Field, Kind, Of, Who
from maxgreen.actions.proofs import check_proof
from maxgreen.actions.session import kwh
from maxgreen.chain.market import COINS, Exchange, Pool, coin
from maxgreen.chain.orders import Line, SettlementContract
from maxgreen.chain.registry import apply_with, each_system, request_replacement, rotate
from maxgreen.errors import UsageError
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import Role
from maxgreen.protocol.system import Kind as SystemKind
from maxgreen.said import said
from maxgreen.units import MWS_PER_KWH

_DAY_S: Final = 86_400
_COINS: Final = tuple(COINS)
_LINE: Final = Field("line", Kind.LINE, "line", of=Of.MY_LINE)
_NODE: Final = Field("node", Kind.NUMBER, "storage node", of=Of.NODE)
_POOL: Final = Field("node", Kind.NUMBER, "pool of storage node", of=Of.POOL)
_STORAGE: Final = Field("number", Kind.NUMBER, "request", of=Of.STORAGE_REQUEST)
_TAKE_OUT: Final = Field("number", Kind.NUMBER, "request", of=Of.TAKE_OUT)
_MINE: Final = Field("token", Kind.NUMBER, "system", of=Of.MY_SYSTEM)
_DAYS: Final = Field("days", Kind.NUMBER, "days that the node may think", default="7", most=30)
_SYSTEM: Final = Field("system", Kind.SYSTEM, "system file")
_PROOF: Final = Field("proof", Kind.PROOF, "the device's proof (maxgreen agent prove)")
_READING: Final = Field("reading", Kind.READING, "meter reading; else the newest that was sent", optional=True)
_END: Final = Field("end", Kind.CHOICE, "end of the line", choices=("miner", "node"))


def _apply(with_: Context, values: Mapping[str, Any]) -> None:
    proof = values["proof"]
    check_proof(with_.deployment, with_.account.address, values["system"], proof, "")
    apply_with(with_.deployment, with_.account, proof["spki"], proof["signature"], values["system"])


def _rotate_key(with_: Context, values: Mapping[str, Any]) -> None:
    proof = values["proof"]
    if not proof["hand_over"]:
        raise UsageError("the proof has no hand-over; make it with 'maxgreen agent prove … --next'")
    check_proof(with_.deployment, with_.account.address, values["system"], proof, "")
    rotate(with_.deployment, with_.account, values["token"], proof["spki"], proof["hand_over"], proof["signature"])


def _request_key(with_: Context, values: Mapping[str, Any]) -> None:
    proof = values["proof"]
    check_proof(with_.deployment, with_.account.address, values["system"], proof, "")
    request_replacement(with_.deployment, with_.account, values["token"], proof["spki"], proof["signature"])


def _claim(with_: Context, values: Mapping[str, Any]) -> None:
    contract = SettlementContract(with_.deployment)
    for claim in with_.claims():
        line = contract.line(claim.line)
        wanted = values["line"] == claim.line if values["line"] else not line.hold and _has_an_end(with_, line)
        if wanted and line.paid_mws < claim.payable_total_mws:
            contract.claim(with_.account, claim)


def _has_an_end(with_: Context, line: Line) -> bool:
    """Tell whether one of a line's ends is the account's."""
    functions: Any = with_.deployment.registry.functions
    tokens = (line.ends.miner_token, line.ends.node_token)
    return any(with_.deployment.chain.call(functions.ownerOf(token)) == with_.account.address for token in tokens)


def _redeem(with_: Context, values: Mapping[str, Any]) -> None:
    pool = Pool(with_.deployment, values["node"])
    shares = values["shares"] or pool.shares(with_.account.address)[0]
    if not shares:
        raise UsageError(said("you have no shares in the pool of node {node}", node=values["node"]))
    if values["take"] == "each":
        pool.redeem(with_.account, shares)
    else:
        pool.redeem_in(with_.account, values["take"], shares)


def _withdraw(with_: Context, _values: Mapping[str, Any]) -> None:
    exchange, deployment = Exchange(with_.deployment), with_.deployment
    nodes = [s.token for s in each_system(deployment) if s.spec.kind is SystemKind.STORAGE_NODE]
    for token in (*(coin(deployment, "energy", node) for node in nodes), coin(deployment, "carbon")):
        if exchange.owed(with_.account.address, token.address):
            exchange.withdraw(with_.account, token.address)


def _accept(with_: Context, values: Mapping[str, Any]) -> None:
    exchange = Exchange(with_.deployment)
    found = exchange.take_out(values["number"])
    node_reading = _shown(with_, values["reading"], found.node, _delivering(with_, found.node))
    buyer_reading = _shown(with_, values["buyer_reading"], found.buyer_token, (found.buyer_channel,))
    exchange.accept(with_.account, values["number"], node_reading, buyer_reading)


def _finish(with_: Context, values: Mapping[str, Any]) -> None:
    exchange = Exchange(with_.deployment)
    found = exchange.take_out(values["number"])
    exchange.finish(
        with_.account, values["number"], _shown(with_, values["reading"], found.node, (found.node_channel,))
    )


def _confirm(with_: Context, values: Mapping[str, Any]) -> None:
    exchange = Exchange(with_.deployment)
    found = exchange.take_out(values["number"])
    reading = _shown(with_, values["reading"], found.buyer_token, (found.buyer_channel,))
    exchange.confirm(with_.account, values["number"], reading)


def _delivering(with_: Context, node: int) -> Sequence[int]:
    """Return the channels on which a node delivers."""
    spec = next(each_system(with_.deployment, [node])).spec
    return [channel.number for channel in spec.channels if channel.role == Role.DELIVERED]


def _shown(with_: Context, given: Attestation | None, token: int, channels: Sequence[int]) -> Attestation:
    """Return the reading that somebody gave, or the newest one that a meter attested."""
    if not channels:
        raise UsageError(said("system {token} has no meter for this", token=token))
    for channel in () if given is not None else channels:
        found = with_.reading(token, channel)
        if found is not None:
            return found
    if given is None:
        raise UsageError(
            said("system {token}: no meter reading was sent lately; ask the operator for its registers", token=token)
        )
    return given


def _storage(with_: Context, values: Mapping[str, Any]) -> None:
    battery_mws = next(each_system(with_.deployment, [values["node"]])).spec.battery_wh * MWS_PER_KWH // 1000
    if values["energy"] > battery_mws:
        raise UsageError(
            said(
                "the battery of node {node} holds {energy}, and you ask for more",
                node=values["node"],
                energy=kwh(battery_mws),
            )
        )
    Exchange(with_.deployment).request_storage(
        with_.account, values["miner"], values["node"], values["energy"], values["days"] * _DAY_S
    )


def _take_out(with_: Context, values: Mapping[str, Any]) -> None:
    token, channel = values["buyer"]
    if not _delivering(with_, values["node"]):
        raise UsageError(said("storage node {node} has no meter that delivers energy", node=values["node"]))
    Exchange(with_.deployment).request_take_out(
        with_.account, token, channel, values["node"], values["amount"], values["days"] * _DAY_S
    )


OWNER_ACTIONS: Final = (
    Action(
        "apply", Who.ANYONE, "Apply for a system", "The DAO admits it; then it has a token that nobody can move.",
        (_SYSTEM, _PROOF), _apply,
    ),
    Action(
        "claim", Who.ANYONE, "Claim what was approved",
        "What is not paid yet of your lines in the newest approved order.",
        (Field("line", Kind.LINE, "only this line", optional=True, of=Of.MY_LINE),), _claim, repeats=True,
        nothing="Nothing is approved that you did not claim already; Home says what each line waits for.",
    ),
    Action(
        "collect", Who.ANYONE, "Collect credit", "What waits for room in the node's battery, as far as there is room.",
        (_LINE,), lambda w, v: SettlementContract(w.deployment).collect(w.account, v["line"]),
    ),
    Action(
        "close-line", Who.OWNER, "Close a line", "It closes when both owners agreed: nothing measured later counts.",
        (_LINE,), lambda w, v: SettlementContract(w.deployment).agree_to_close(w.account, v["line"]),
    ),
    Action(
        "rotate-key", Who.OWNER, "Rotate a key", "The old key hands over to the one that the agent made.",
        (_MINE, _SYSTEM, _PROOF), _rotate_key,
    ),
    Action(
        "request-key", Who.OWNER, "Replace a lost key", "The DAO decides; from then on the new device counts.",
        (_MINE, _SYSTEM, _PROOF), _request_key,
    ),
    Action(
        "next-key", Who.ANYONE, "Go on with the next key", "A line's end, after its key was rotated or replaced.",
        (_LINE, _END),
        lambda w, v: SettlementContract(w.deployment).next_key(w.account, v["line"], miner_end=v["end"] == "miner"),
    ),
    Action(
        "show-closing", Who.ANYONE, "Show an earlier key's register", "What it measured after its last claim.",
        (_LINE, _END, Field("reading", Kind.READING, "meter reading")),
        lambda w, v: SettlementContract(w.deployment).show_closing(
            w.account, v["line"], v["reading"], miner_end=v["end"] == "miner"
        ),
    ),
    Action(
        "prove-fraud", Who.ANYONE, "Prove a fraud", "Two readings of a device that contradict each other suspend it.",
        (
            Field("token", Kind.NUMBER, "system", of=Of.SYSTEM),
            Field("first", Kind.READING, "one reading"), Field("second", Kind.READING, "the other"),
            Field("key", Kind.NUMBER, "which of its keys signed, from 0", default="0"),
        ),
        lambda w, v: SettlementContract(w.deployment).prove_fraud(
            w.account, v["token"], v["key"], v["first"], v["second"]
        ),
    ),
    Action(
        "deposit", Who.ANYONE, "Put tokens into the pool", "For shares of it, which earn its fees.",
        (_POOL, Field("amount", Kind.AMOUNT, "how many"), Field("coin", Kind.CHOICE, "token", choices=_COINS)),
        lambda w, v: Pool(w.deployment, v["node"]).deposit(w.account, v["coin"], v["amount"]),
    ),
    Action(
        "redeem", Who.ANYONE, "Take out of the pool", "What shares are worth: of each token, or all in one of them.",
        (
            _POOL, Field("shares", Kind.AMOUNT, "how many shares; else all", optional=True),
            Field("take", Kind.CHOICE, "in which token", default="each", choices=("each", *_COINS)),
        ),
        _redeem,
    ),
    Action(
        "swap", Who.ANYONE, "Swap", "At the pool's parity, for 0.3 %.",
        (
            _POOL, Field("amount", Kind.AMOUNT, "how many you give"),
            Field("give", Kind.CHOICE, "you give", choices=_COINS),
            Field("get", Kind.CHOICE, "you get", choices=_COINS),
        ),
        lambda w, v: Pool(w.deployment, v["node"]).swap(w.account, v["give"], v["amount"], v["get"]),
    ),
    Action(
        "request-storage", Who.OWNER, "Ask for storage", "A node says whether it takes energy that you will send.",
        (
            Field("miner", Kind.NUMBER, "your solar system", of=Of.MY_MINER), _NODE,
            Field("energy", Kind.ENERGY, "kWh"), _DAYS,
        ),
        _storage,
    ),
    Action(
        "take-out", Who.OWNER, "Ask for energy", "Your energy tokens (and their carbon) are in escrow until it came.",
        (
            Field("buyer", Kind.METER, "your meter that receives it", of=Of.MY_METER), _NODE,
            Field("amount", Kind.AMOUNT, "kWh"), _DAYS,
        ),
        _take_out,
    ),
    Action(
        "cancel", Who.OWNER, "Cancel a request for energy", "As long as the node did not accept it.",
        (_TAKE_OUT,), lambda w, v: Exchange(w.deployment).decline(w.account, v["number"]),
    ),
    Action(
        "confirm", Who.OWNER, "Confirm what you received", "With your meter's reading of after the delivery.",
        (_TAKE_OUT, _READING), _confirm,
    ),
    Action(
        "settle", Who.ANYONE, "Settle by one meter", "When the other said nothing for two weeks.",
        (_TAKE_OUT,), lambda w, v: Exchange(w.deployment).settle(w.account, v["number"]),
    ),
    Action(
        "withdraw", Who.ANYONE, "Take back", "Everything of yours that is out of escrow.", (), _withdraw, repeats=True,
        nothing="Nothing of yours is out of escrow.",
    ),
    Action(
        "accept-storage", Who.NODE, "Accept to store", "The DAO then approves the line.",
        (_STORAGE,), lambda w, v: Exchange(w.deployment).answer_storage(w.account, v["number"], accept=True),
    ),
    Action(
        "refuse-storage", Who.NODE, "Refuse to store, or take the request back",
        "The node's owner refuses; the miner's takes it back.",
        (_STORAGE,), lambda w, v: Exchange(w.deployment).answer_storage(w.account, v["number"], accept=False),
    ),
    Action(
        "accept", Who.NODE, "Accept to deliver", "With both meters' readings of now, not older than an hour.",
        (_TAKE_OUT, _READING, Field("buyer_reading", Kind.READING, "the buyer's; else the newest", optional=True)),
        _accept,
    ),
    Action(
        "refuse", Who.NODE, "Refuse to deliver", "The buyer has its tokens again.",
        (_TAKE_OUT,), lambda w, v: Exchange(w.deployment).decline(w.account, v["number"]),
    ),
    Action(
        "finish", Who.NODE, "Close a delivery", "With your meter's reading.", (_TAKE_OUT, _READING), _finish
    ),
)  # fmt: skip
