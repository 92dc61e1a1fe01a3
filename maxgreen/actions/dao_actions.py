"""What members of the DAO, and the operator, do on the chain. Whatever changes something is a proposal."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from maxgreen.actions.ballots import Ballots
from maxgreen.actions.catalog import Action, Context, Field, Kind, Of, Who
from maxgreen.chain.dao import Proposal, Vote
from maxgreen.chain.market import COINS, Exchange, Pool, RequestStatus, coin, pool_opening, sweep
from maxgreen.chain.orders import Ends, Exclusion, LossTerms, OrderStatus, SettlementContract
from maxgreen.chain.registry import admission, application
from maxgreen.errors import UsageError
from maxgreen.protocol.keys import SPKI_PREFIX, key_id
from maxgreen.said import said

CODES: Final = {60: "data_integrity", 61: "mining_history", 62: "hardware_integrity", 63: "loss", 64: "other"}
STATUSES: Final = {"active": 1, "suspended": 2, "revoked": 3}
TOPICS: Final = {"hardware": 0, "pool": 1}
VOTES: Final = {"against": Vote.AGAINST, "for": Vote.FOR, "abstain": Vote.ABSTAIN}
_COINS: Final = tuple(name for name in COINS if name != "energy")
_CODE_OF: Final = {name: code for code, name in CODES.items()}
_LINE: Final = Field("line", Kind.LINE, "line", of=Of.LINE)
_CODE: Final = Field("code", Kind.CHOICE, "why", choices=tuple(_CODE_OF))
_TEXT: Final = Field("text", Kind.TEXT, "in words, for the owners")
_ORDER: Final = Field("number", Kind.NUMBER, "order", of=Of.ORDER)
_TOKEN: Final = Field("token", Kind.NUMBER, "system", of=Of.SYSTEM)
_NODE: Final = Field("node", Kind.NUMBER, "storage node", of=Of.NODE)
_PROPOSAL: Final = Field("proposal", Kind.PROPOSAL, "proposal", of=Of.PROPOSAL)
_DIGEST: Final = Field("digest", Kind.TEXT, "its SHA-256, 64 hex digits")
_BODY: Final = Field("body", Kind.CHOICE, "who votes", default="technical", choices=("technical", "modules"))


def governor_of(body: str) -> str:
    """Return the governor of a body: the technical DAO's, or that of the vote on modules."""
    return "ModuleGovernor" if body == "modules" else "TechGovernor"


def propose(with_: Context, proposal: Proposal, body: str = "technical") -> None:
    """Propose, unless the same is under way."""
    ballots = Ballots(with_.deployment, with_.clock, governor_of(body))
    ballots.dao.propose(with_.account, ballots.next_attempt(proposal, with_.account.address))


def _proposal(
    name: str,
    title: str,
    about: str,
    fields: tuple[Field, ...],
    make: Callable[[Context, Mapping[str, Any]], Proposal],
) -> Action:
    """Return the action of a member who proposes something."""
    return Action(name, Who.MEMBER, title, about, fields, lambda w, v: propose(w, make(w, v)), proposes=make)


def _vote(with_: Context, values: Mapping[str, Any]) -> None:
    ballots = Ballots(with_.deployment, with_.clock, governor_of(values["body"]))
    ballot = ballots.find(values["proposal"])
    ballots.dao.cast(with_.account, ballot.number, VOTES[values["choice"]], values["reason"] or "")


def _queue(with_: Context, values: Mapping[str, Any]) -> None:
    ballots = Ballots(with_.deployment, with_.clock, governor_of(values["body"]))
    ballots.dao.queue(with_.account, ballots.find(values["proposal"]).arguments)


def _execute(with_: Context, values: Mapping[str, Any]) -> None:
    ballots = Ballots(with_.deployment, with_.clock, governor_of(values["body"]))
    ballots.dao.execute(with_.account, ballots.find(values["proposal"]).arguments)


def _admit(with_: Context, values: Mapping[str, Any]) -> Proposal:
    if not application(with_.deployment, values["number"]).applicant:
        raise UsageError(f"there is no application {values['number']}")
    return admission(with_.deployment, [values["number"]])


def _undecided(with_: Context, number: int) -> tuple[SettlementContract, int]:
    """Return an order that waits for the DAO; UsageError when it does not."""
    contract = SettlementContract(with_.deployment)
    status = contract.order(number).status
    if status is not OrderStatus.POSTED:
        raise UsageError(said("order {number} is {status} already", number=number, status=said(status.label)))
    return contract, number


def _approve(with_: Context, values: Mapping[str, Any]) -> Proposal:
    contract, number = _undecided(with_, values["number"])
    if not with_.deployment.chain.is_final(contract.order(number).posted_block):
        raise UsageError(f"order {number} is not final yet: the chain could still take it back; try again later")
    without = []
    if values["line"] is not None:
        without = [Exclusion(values["line"], _CODE_OF[values["code"]], values["text"] or values["code"])]
    return contract.approval(number, contract.posting(number), without)


def _reject(with_: Context, values: Mapping[str, Any]) -> Proposal:
    contract, number = _undecided(with_, values["number"])
    return contract.rejection(number, contract.posting(number), _CODE_OF[values["code"]], values["text"])


def _line(with_: Context, values: Mapping[str, Any]) -> Proposal:
    (miner, sent), (node, received) = values["miner"], values["node"]
    ends = Ends(miner, sent, node, received, values["epoch"])
    terms = LossTerms(values["resistance_uohm"], values["loss_ppm"], values["max_loss_ppm"])
    return SettlementContract(with_.deployment).line_approval([(ends, terms)])


def _hold(with_: Context, values: Mapping[str, Any]) -> Proposal:
    exclusion = Exclusion(values["line"], _CODE_OF[values["code"]], values["text"])
    return SettlementContract(with_.deployment).holding(exclusion)


def _status(with_: Context, values: Mapping[str, Any]) -> Proposal:
    functions: Any = with_.deployment.registry.functions
    call = functions.setStatus(values["token"], STATUSES[values["to"]], values["text"])
    return Proposal((call,), f"Set system {values['token']} to {values['to']}")


def _replace_key(with_: Context, values: Mapping[str, Any]) -> Proposal:
    functions: Any = with_.deployment.registry.functions
    token = values["token"]
    x, y = with_.deployment.chain.call(functions.requestedKeyOf(token))
    if not int.from_bytes(x, "big"):
        raise UsageError(f"system {token}: its owner asked for no other key")
    call = functions.replaceKey(token, key_id(SPKI_PREFIX + x + y))
    return Proposal((call,), f"Replace the key of system {token}")


def _pool(with_: Context, values: Mapping[str, Any]) -> Proposal:
    worth = [values[name] for name in ("deca", "maxcoin", "carbon")]
    return pool_opening(with_.deployment, values["node"], worth, [values["cap"]] * 4)


def _give(with_: Context, values: Mapping[str, Any]) -> Proposal:
    call = coin(with_.deployment, values["coin"]).functions.transfer(values["to"], values["amount"])
    return Proposal((call,), f"Give {values['amount'] / 10**18:g} {values['coin']} to {values['to']}")


def _provide(with_: Context, values: Mapping[str, Any]) -> Proposal:
    pool = Pool(with_.deployment, values["node"])
    functions: Any = with_.deployment.chain.contract("EnergyPool", pool.address).functions
    allow = coin(with_.deployment, values["coin"]).functions.approve(pool.address, values["amount"])
    deposit = functions.deposit(pool.token(values["coin"]), values["amount"], 1, 2**64)
    what = f"{values['amount'] / 10**18:g} {values['coin']}"
    return Proposal((allow, deposit), f"Provide {what} to the pool of node {values['node']}")


def _decide(with_: Context, values: Mapping[str, Any]) -> Proposal:
    exchange, number = Exchange(with_.deployment), values["number"]
    status = exchange.take_out(number).status
    if status not in {RequestStatus.ACCEPTED, RequestStatus.FINISHED}:
        raise UsageError(said("take-out {number} is {status}", number=number, status=said(status.label)))
    return exchange.decision(number, values["energy"] or 0)


def _member(with_: Context, values: Mapping[str, Any]) -> Proposal:
    functions = with_.deployment.functions("DaoBadge")
    call = functions.grant(values["address"]) if values["what"] == "add" else functions.revoke(values["address"])
    return Proposal((call,), f"Member {values['what']} {values['address']}")


def _record(with_: Context, values: Mapping[str, Any]) -> None:
    functions: Any = with_.deployment.registry.functions
    digest = _digest(values["digest"])
    call = functions.setRecord(values["token"], TOPICS[values["topic"]], digest, values["uri"] or "")
    with_.deployment.chain.transact(with_.account, call)


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError(f"SHA-256: {text[:70]!r}: expected 64 hex digits")
    return digest


def _module(with_: Context, values: Mapping[str, Any]) -> None:
    digest = _digest(values["digest"])
    call = with_.deployment.functions("ModuleRegistry").set(
        values["name"], values["version"], digest, values["uri"] or ""
    )
    propose(with_, Proposal((call,), f"Release {values['name']} {values['version']}"), "modules")


def _elector(with_: Context, values: Mapping[str, Any]) -> None:
    functions = with_.deployment.functions("Electorate")
    with_.deployment.chain.transact(with_.account, functions.refresh(values["address"] or with_.account.address))


def _contract(with_: Context) -> SettlementContract:
    return SettlementContract(with_.deployment)


DAO_ACTIONS: Final = (
    Action(
        "vote", Who.MEMBER, "Vote", "Once. What more than half of all members vote for passes.",
        (
            _PROPOSAL, Field("choice", Kind.CHOICE, "your vote", choices=("for", "against", "abstain")),
            Field("reason", Kind.TEXT, "why; everybody can read it", optional=True), _BODY,
        ),
        _vote,
    ),
    Action("queue", Who.ANYONE, "Queue", "Put what passed into the timelock.", (_PROPOSAL, _BODY), _queue),
    Action("execute", Who.ANYONE, "Carry out", "When the timelock is over.", (_PROPOSAL, _BODY), _execute),
    _proposal(
        "admit", "Propose to admit", "With exactly the content that the application has now.",
        (Field("number", Kind.NUMBER, "application", of=Of.APPLICATION),), _admit,
    ),
    _proposal(
        "approve", "Propose to approve an order", "As it is on the chain now; a line may be left out.",
        (
            _ORDER, Field("line", Kind.LINE, "without this line", optional=True, of=Of.LINE),
            Field("code", Kind.CHOICE, "why it is left out", default="other", choices=tuple(_CODE_OF)),
            Field("text", Kind.TEXT, "in words, for its owners", optional=True),
        ),
        _approve,
    ),
    _proposal(
        "reject", "Propose to reject an order", "The operator then closes the period again.",
        (_ORDER, _CODE, _TEXT), _reject,
    ),
    _proposal(
        "line", "Propose a line", "From a miner's sent channel to a node's received one.",
        (
            Field("miner", Kind.METER, "from the meter", of=Of.SENDING),
            Field("node", Kind.METER, "to the meter", of=Of.RECEIVING),
            Field("resistance_uohm", Kind.NUMBER, "resistance, µΩ", default="0"),
            Field("loss_ppm", Kind.NUMBER, "expected loss, ppm, where the resistance is 0", default="0", most=10**6),
            Field("max_loss_ppm", Kind.NUMBER, "loss that is never accepted, ppm", default="100000", most=10**6),
            Field("epoch", Kind.NUMBER, "how many lines between them were closed before", default="0", most=2**32 - 1),
        ),
        _line,
    ),
    _proposal(
        "hold", "Propose to stop a line's payment", "Until it is released.",
        (_LINE, _CODE, _TEXT), _hold,
    ),
    _proposal(
        "release", "Propose to pay a held line again", "What is due is paid by the next claim.",
        (_LINE,), lambda w, v: _contract(w).releasing(v["line"]),
    ),
    _proposal(
        "forfeit", "Propose to take credit back", "What a line was credited and not paid.",
        (_LINE,), lambda w, v: _contract(w).forfeiting(v["line"]),
    ),
    _proposal(
        "close", "Propose to close a line", "Its channels are free for another.",
        (_LINE,), lambda w, v: _contract(w).closing(v["line"]),
    ),
    _proposal(
        "status", "Propose a system's status", "A suspended system is not paid.",
        (_TOKEN, Field("to", Kind.CHOICE, "status", choices=tuple(STATUSES)), _TEXT), _status,
    ),
    _proposal(
        "replace-key", "Propose to replace a key", "By the one that its owner asked for.",
        (_TOKEN,), _replace_key,
    ),
    _proposal(
        "pool", "Propose to open a node's pool", "At a parity that never changes.",
        (
            _NODE, *(Field(name, Kind.AMOUNT, f"{name} that a kWh is worth", default="1") for name in _COINS),
            Field("cap", Kind.AMOUNT, "the most of each that it keeps", default="1000000"),
        ),
        _pool,
    ),
    _proposal(
        "give", "Propose to give coins", "Of the vault.",
        (
            Field("coin", Kind.CHOICE, "coin", choices=_COINS), Field("amount", Kind.AMOUNT, "how many"),
            Field("to", Kind.ADDRESS, "to whom"),
        ),
        _give,
    ),
    _proposal(
        "provide", "Propose to put coins into a pool", "Of the vault; the shares are the vault's.",
        (_NODE, Field("coin", Kind.CHOICE, "coin", choices=_COINS), Field("amount", Kind.AMOUNT, "how many")),
        _provide,
    ),
    _proposal(
        "decide", "Propose what a take-out delivered", "When its parties disagree.",
        (
            Field("number", Kind.NUMBER, "take-out", of=Of.TAKE_OUT),
            Field("energy", Kind.ENERGY, "kWh that were delivered; nothing, where it is left out", optional=True),
        ),
        _decide,
    ),
    _proposal(
        "member", "Propose a member", "One more, or one less.",
        (Field("what", Kind.CHOICE, "what", choices=("add", "remove")), Field("address", Kind.ADDRESS, "who")),
        _member,
    ),
    Action(
        "module", Who.ANYONE, "Propose a module's version", "To members and owners of active systems.",
        (
            Field("name", Kind.TEXT, "agent, limits, backend keys, checks, …"), Field("version", Kind.TEXT, "version"),
            _DIGEST,
            Field("uri", Kind.TEXT, "where it can be had", optional=True),
        ),
        _module,
    ),
    Action(
        "elector", Who.ANYONE, "Take the vote on modules", "That membership or an active system gives.",
        (Field("address", Kind.ADDRESS, "of whom; else of you", optional=True),), _elector,
    ),
    Action(
        "withdraw-order", Who.OPERATOR, "Withdraw an order", "The next settlement run posts what is due then.",
        (_ORDER,), lambda w, v: _contract(w).withdraw(w.account, v["number"]),
    ),
    Action(
        "record",
        Who.OPERATOR,
        "Record",
        "A system's hardware status or mining pool data: the SHA-256 of what it is, on the system's token.",
        (
            _TOKEN,
            Field("topic", Kind.CHOICE, "what", choices=tuple(TOPICS)),
            _DIGEST,
            Field("uri", Kind.TEXT, "where it can be had", optional=True),
        ),
        _record,
    ),
    Action(
        "sweep", Who.ANYONE, "Sweep", "Mint the coins that are due on paid energy, to the vault.",
        (), lambda w, _v: sweep(w.deployment, w.account),
    ),
)  # fmt: skip
