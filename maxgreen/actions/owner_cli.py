"""`maxgreen owner`: what owners of miners see and do. Much of it is a storage node's owner's, too."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from maxgreen.actions.proofs import check_proof, read_proof
from maxgreen.actions.samples import sample_text
from maxgreen.actions.session import (
    Session,
    group,
    kwh,
    line_id,
    meter_of,
    mws,
    read_file,
    read_reading,
    session,
    tokens,
    wei,
)
from maxgreen.chain.claims import parse_claims
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.market import Exchange, Pool, RequestStatus, balances, coin
from maxgreen.chain.orders import Line, SettlementContract
from maxgreen.chain.registry import (
    Application,
    RegisteredSystem,
    application,
    apply_with,
    each_system,
    request_replacement,
    rotate,
)
from maxgreen.clock import utc
from maxgreen.errors import UsageError
from maxgreen.protocol.keys import key_id
from maxgreen.protocol.system import Kind, SystemSpec, read_system

app = group("Owners: apply, see what waits, claim, pool, store and take out energy.")

_STATUSES: Final = ("none", "active", "suspended", "revoked")
_PROOF_HELP: Final = "what 'maxgreen agent prove' printed, in a file"
LineArgument = Annotated[str, typer.Argument(help="the line's id, as 'owner status' prints it")]
EndArgument = Annotated[str, typer.Argument(help="miner or node")]
ReadingOption = Annotated[Path, typer.Option(help="what 'maxgreen operator reading' wrote: the meter's register")]
TokenArgument = Annotated[int, typer.Argument(help="the system's token")]
NodeArgument = Annotated[int, typer.Argument(help="the storage node's token")]
NumberArgument = Annotated[int, typer.Argument(help="the request's number")]
AmountArgument = Annotated[str, typer.Argument(help="how many tokens, like 1.5")]


@app.command()
def sample(kind: Annotated[str, typer.Option(help="miner or storage_node")] = "miner") -> None:
    """Print a commented system file to begin with."""
    typer.echo(sample_text(kind), nl=False)


@app.command()
def apply(
    ctx: typer.Context,
    system: Annotated[Path, typer.Option(help="the system file that the device signed")],
    proof: Annotated[Path, typer.Option(help=_PROOF_HELP)],
) -> None:
    """Apply for a soul-bound token: with the system, and the device's signature over it."""
    with_ = session(ctx)
    spki, signature, spec, _ = _proved(with_, system, proof)
    number = with_.act(lambda: apply_with(with_.deployment, with_.account, spki, signature, spec))
    with_.tell(
        {"application": number, "device": key_id(spki).hex(), "content": spec.digest.hex()},
        f"application {number}: {spec.kind.label.replace('_', ' ')}, device {key_id(spki).hex()}",
        then=f"a member of the DAO: maxgreen dao admit {number}; then their vote. 'maxgreen owner status' says how far",
    )


@app.command()
def status(
    ctx: typer.Context, address: Annotated[str, typer.Option(help="of whom; else of your account")] = ""
) -> None:
    """Show your applications, systems, lines, tokens and requests, and whose turn it is."""
    with_ = session(ctx)
    who = address or with_.account.address
    view = _View.of(with_.deployment, who)
    with_.tell(view.to_json(), *view.lines(), then=view.then())


@app.command()
def claim(
    ctx: typer.Context,
    order: Annotated[Path, typer.Option(help="order.json of the period")],
    line: Annotated[str, typer.Option(help="only this line; else all of it that is yours")] = "",
) -> None:
    """Claim what an approved order pays; anybody may do so for anybody."""
    with_ = session(ctx)
    claims = parse_claims(read_file(order))
    contract = SettlementContract(with_.deployment)
    mine = {line_id(line)} if line else {x.ends.line_id for x in _lines_of(with_.deployment, with_.account.address)}
    done, refused = [], {}
    for found in claims:
        if found.line in mine and contract.line(found.line).paid_mws < found.payable_total_mws:
            try:
                with_.act(lambda found=found: contract.claim(with_.account, found))  # type: ignore[misc]
                done.append(found.line.hex())
            except ChainRefusedError as error:
                refused[found.line.hex()] = str(error)
    with_.tell(
        {"claimed": done, "refused": refused},
        *(f"claimed line {name}" for name in done),
        *(f"line {name}: {why}" for name, why in refused.items()),
        *(() if done or refused else ("nothing in this order is left to claim for you",)),
        then="maxgreen owner status shows your tokens" if done else "",
    )
    if refused:
        raise typer.Exit(1)


@app.command()
def collect(ctx: typer.Context, line: LineArgument) -> None:
    """Take what a line has credit for, as far as its node's battery has room."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    with_.act(lambda: contract.collect(with_.account, line_id(line)))
    left = contract.line(line_id(line)).credit_mws
    with_.tell({"credit_mws": str(left)}, f"collected; {kwh(left)} of credit left")


@app.command("close-line")
def close_line(ctx: typer.Context, line: LineArgument) -> None:
    """Agree to close a line of yours; it closes when both owners did."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    with_.act(lambda: contract.agree_to_close(with_.account, line_id(line)))
    closed = bool(contract.line(line_id(line)).closed_s)
    with_.tell(
        {"closed": closed},
        "the line is closed" if closed else "agreed",
        then="" if closed else f"the other owner: maxgreen owner close-line {line}",
    )


@app.command("rotate-key")
def rotate_key(
    ctx: typer.Context,
    token: TokenArgument,
    system: Annotated[Path, typer.Option(help="the system file, as it was admitted")],
    proof: Annotated[Path, typer.Option(help=f"{_PROOF_HELP}, with --next")],
) -> None:
    """Give a system's key its successor: the old key hands over, the new one proves possession."""
    with_ = session(ctx)
    spki, signature, _, value = _proved(with_, system, proof)
    if not value["hand_over"]:
        raise UsageError(f"proof {proof}: it has no hand-over; make it with 'maxgreen agent prove … --next'")
    with_.act(lambda: rotate(with_.deployment, with_.account, token, spki, value["hand_over"], signature))
    with_.tell(
        {"token": token, "device": key_id(spki).hex()},
        f"system {token} signs with device {key_id(spki).hex()} from now on",
        then="start the agent with its next key",
    )


@app.command("request-key")
def request_key(
    ctx: typer.Context,
    token: TokenArgument,
    system: Annotated[Path, typer.Option(help="the system file, as it was admitted")],
    proof: Annotated[Path, typer.Option(help=_PROOF_HELP)],
) -> None:
    """Ask the DAO to replace a key that is lost: with the new device's signature."""
    with_ = session(ctx)
    spki, signature, _, _ = _proved(with_, system, proof)
    with_.act(lambda: request_replacement(with_.deployment, with_.account, token, spki, signature))
    with_.tell(
        {"token": token, "device": key_id(spki).hex()},
        f"asked for device {key_id(spki).hex()} in place of system {token}'s",
        then=f"a member of the DAO: maxgreen dao replace-key {token}",
    )


@app.command("next-key")
def next_key(ctx: typer.Context, line: LineArgument, end: EndArgument) -> None:
    """Let a line's end go on with its next key after a rotation or replacement. Anyone may."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    with_.act(lambda: contract.next_key(with_.account, line_id(line), miner_end=_is_miner(end)))
    with_.tell(
        {"line": line, "end": end},
        f"line {line} goes on with the next key of its {end}",
        then=f"what the old key measured after its last claim: maxgreen owner show-closing {line} {end} --reading FILE",
    )


@app.command("show-closing")
def show_closing(ctx: typer.Context, line: LineArgument, end: EndArgument, reading: ReadingOption) -> None:
    """Show a later register of a line's earlier key: the difference is carried on. Anyone may."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    closing = read_reading(reading)
    with_.act(lambda: contract.show_closing(with_.account, line_id(line), closing, miner_end=_is_miner(end)))
    found = contract.line(line_id(line))
    carried = found.carried_sent_mws if _is_miner(end) else found.carried_received_mws
    with_.tell({"carried_mws": str(carried)}, f"{kwh(carried)} are carried from earlier keys")


@app.command("prove-fraud")
def prove_fraud(
    ctx: typer.Context,
    token: TokenArgument,
    first: Annotated[Path, typer.Argument(help="one attestation of the device, as 'operator reading' writes it")],
    second: Annotated[
        Path, typer.Argument(help="another one with the same channel and seq, but other register or time")
    ],
    key: Annotated[int, typer.Option(min=0, help="which of the system's keys signed, counted from 0")] = 0,
) -> None:
    """Prove that a device signed two histories: its system is suspended until the DAO decides. Anyone may."""
    with_ = session(ctx)
    pair = (read_reading(first), read_reading(second))
    contract = SettlementContract(with_.deployment)
    with_.act(lambda: contract.prove_fraud(with_.account, token, key, *pair))
    with_.tell(
        {"token": token, "status": "suspended"},
        f"system {token} is suspended",
        then=f"the DAO: maxgreen dao status {token} active TEXT, or maxgreen dao forfeit LINE",
    )


@app.command()
def pool(ctx: typer.Context, node: NodeArgument) -> None:
    """Show a node's pool: reserves, parity, and your share of it."""
    with_ = session(ctx)
    target = Pool(with_.deployment, node)
    shares, value = target.shares(with_.account.address)
    reserves, parity = target.reserves(), target.per_kwh()
    with_.tell(
        {"shares": str(shares), "value_wei": str(value), "reserves": _texts(reserves), "per_kwh": _texts(parity)},
        *(f"{name}: {tokens(reserves[name])} in the pool, {tokens(parity[name])} for 1 kWh" for name in reserves),
        f"yours: {tokens(shares)} shares, worth {tokens(value)} kWh",
    )


@app.command()
def deposit(
    ctx: typer.Context,
    node: NodeArgument,
    amount: AmountArgument,
    coin_name: Annotated[str, typer.Argument(metavar="TOKEN", help="energy, deca, maxcoin or carbon")] = "energy",
) -> None:
    """Put tokens (energy, deca, maxcoin or carbon) into a node's pool for shares, which earn its fees."""
    with_ = session(ctx)
    target = Pool(with_.deployment, node)
    with_.act(lambda: target.deposit(with_.account, coin_name, wei(amount)))
    _tell_shares(with_, target)


@app.command()
def redeem(
    ctx: typer.Context,
    node: NodeArgument,
    shares: Annotated[str, typer.Argument(help="how many shares, or all")] = "all",
    take: Annotated[str, typer.Option(help="one token: energy or maxcoin, …; else a part of each")] = "",
) -> None:
    """Take out what shares are worth: a part of each token, or energy tokens or MaxCoin (for a swap's fee)."""
    with_ = session(ctx)
    target = Pool(with_.deployment, node)
    count = target.shares(with_.account.address)[0] if shares == "all" else wei(shares)
    if not count:
        raise UsageError(f"you have no shares in the pool of node {node}")
    if take:
        with_.act(lambda: target.redeem_in(with_.account, take, count))
    else:
        with_.act(lambda: target.redeem(with_.account, count))
    _tell_shares(with_, target)


@app.command()
def swap(
    ctx: typer.Context,
    node: NodeArgument,
    amount: AmountArgument,
    give: Annotated[str, typer.Argument(help="the token that you give: energy, deca, maxcoin or carbon")],
    get: Annotated[str, typer.Argument(help="the token that you get")],
) -> None:
    """Exchange tokens at the pool's parity, for 0.3 %."""
    with_ = session(ctx)
    target = Pool(with_.deployment, node)
    expected = target.quote(give, wei(amount), get)
    with_.act(lambda: target.swap(with_.account, give, wei(amount), get))
    with_.tell({"got_wei": str(expected)}, f"gave {amount} {give}, got {tokens(expected)} {get}")


@app.command("request-storage")
def request_storage(
    ctx: typer.Context,
    miner: Annotated[int, typer.Argument(help="your miner's token")],
    node: NodeArgument,
    energy: Annotated[str, typer.Argument(help="kWh that you will send")],
    days: Annotated[int, typer.Option(min=1, max=30, help="how long the node may think")] = 7,
) -> None:
    """Ask a node to store energy that you will send."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    number = with_.act(lambda: exchange.request_storage(with_.account, miner, node, mws(energy), days * 86_400))
    with_.tell(
        {"request": number},
        f"storage request {number}: {energy} kWh to node {node}",
        then=f"the node's owner: maxgreen node accept-storage {number}",
    )


@app.command("take-out")
def take_out(
    ctx: typer.Context,
    buyer: Annotated[str, typer.Argument(help="TOKEN.CHANNEL of your meter that receives it")],
    node: NodeArgument,
    amount: AmountArgument,
    days: Annotated[int, typer.Option(min=1, max=30, help="how long the node may think")] = 7,
) -> None:
    """Ask for energy of a node: your energy tokens (and their carbon) are in escrow until it is delivered."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    token, channel = meter_of(buyer)
    number = with_.act(
        lambda: exchange.request_take_out(with_.account, token, channel, node, wei(amount), days * 86_400)
    )
    with_.tell(
        {"request": number},
        f"take-out {number}: {amount} kWh of node {node}, in escrow",
        then=f"the node's owner: maxgreen node accept {number} --reading FILE --buyer-reading FILE",
    )


@app.command()
def cancel(ctx: typer.Context, number: NumberArgument) -> None:
    """Take a take-out request back that the node did not accept."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.decline(with_.account, number))
    with_.tell({"request": number}, f"take-out {number} is over", then="maxgreen owner withdraw")


@app.command()
def confirm(ctx: typer.Context, number: NumberArgument, reading: ReadingOption) -> None:
    """Show your meter's register of after a delivery; with the node's closing register it settles."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.confirm(with_.account, number, read_reading(reading)))
    tell_take_out(with_, exchange, number)


@app.command()
def settle(ctx: typer.Context, number: NumberArgument) -> None:
    """Settle a delivery by the meter that spoke, when the other was silent for two weeks."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.settle(with_.account, number))
    tell_take_out(with_, exchange, number)


@app.command()
def withdraw(ctx: typer.Context) -> None:
    """Take back everything that is out of escrow."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    nodes = [s.token for s in each_system(with_.deployment) if s.spec.kind is Kind.STORAGE_NODE]
    labels = {f"energy {node}": coin(with_.deployment, "energy", node).address for node in nodes}
    labels["carbon"] = coin(with_.deployment, "carbon").address
    got = {}
    for label, address in labels.items():
        if owed := exchange.owed(with_.account.address, address):
            with_.act(lambda address=address: exchange.withdraw(with_.account, address))  # type: ignore[misc]
            got[label] = owed
    lines = [f"{label}: {tokens(amount)}" for label, amount in got.items()]
    with_.tell({"withdrawn": _texts(got)}, *(lines or ["nothing is out of escrow for you"]))


@dataclass(frozen=True)
class _View:
    """All that concerns an account."""

    address: str
    applications: list[Application]
    systems: list[RegisteredSystem]
    statuses: dict[int, str]
    lines_: list[Line]
    held: dict[str, int]
    take_outs: list[Any]
    storage: list[Any]

    @classmethod
    def of(cls, deployment: Deployment, address: str) -> "_View":
        chain, functions = deployment.chain, deployment.registry.functions
        wanted = address.lower()
        count = int(chain.call(functions.applications()))
        applications = [application(deployment, n) for n in range(1, count + 1)]
        everything = list(each_system(deployment))
        systems = [s for s in everything if s.owner.lower() == wanted]
        mine = {s.token for s in systems}
        exchange = Exchange(deployment)
        nodes = [s.token for s in everything if s.spec.kind is Kind.STORAGE_NODE]
        return cls(
            address,
            [a for a in applications if a.applicant.lower() == wanted and not a.token],
            systems,
            {s.token: _STATUSES[int(chain.call(functions.statusOf(s.token)))] for s in systems},
            list(_lines_of(deployment, address)),
            {name: amount for name, amount in balances(deployment, address, nodes).items() if amount},
            [t for t in exchange.take_outs() if t.buyer.lower() == wanted or t.node in mine],
            [r for r in exchange.storage_requests() if r.miner in mine or r.node in mine],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "applications": [a.number for a in self.applications],
            "systems": [
                {"token": s.token, "kind": s.spec.kind.label, "status": self.statuses[s.token]} for s in self.systems
            ],
            "lines": [
                {
                    "line": x.ends.line_id.hex(),
                    "open": bool(x.opened_s) and not x.closed_s,
                    "paid_mws": str(x.paid_mws),
                    "credit_mws": str(x.credit_mws),
                    "hold": x.hold,
                }
                for x in self.lines_
            ],
            "tokens_wei": _texts(self.held),
            "take_outs": [{"request": t.number, "status": t.status.label} for t in self.take_outs],
            "storage_requests": [{"request": r.number, "status": r.status.label} for r in self.storage],
        }

    def lines(self) -> Iterator[str]:
        for a in self.applications:
            yield f"application {a.number}: {a.spec.kind.label.replace('_', ' ')}, waits for the DAO"
        for s in self.systems:
            yield f"system {s.token}: {s.spec.kind.label.replace('_', ' ')}, {self.statuses[s.token]}"
        for x in self.lines_:
            where = "closed" if x.closed_s else "open" if x.opened_s else "approved, not open yet"
            held = f", HELD by the DAO (code {x.hold})" if x.hold else ""
            credit = f", {kwh(x.credit_mws)} wait for room" if x.credit_mws else ""
            yield f"line {x.ends.line_id.hex()}: {where}, {kwh(x.paid_mws)} paid{credit}{held}"
        for name, amount in self.held.items():
            yield f"{name}: {tokens(amount)}"
        for t in self.take_outs:
            yield f"take-out {t.number}: {tokens(t.amount_wei)} kWh of node {t.node}, {t.status.label}"
        for r in self.storage:
            yield f"storage request {r.number}: {kwh(r.energy_mws)} to node {r.node}, {r.status.label}"
        if not (self.applications or self.systems or self.held):
            yield f"{self.address} has no system, application or token here"

    def then(self) -> str:
        """Say whose turn it is, the nearest first."""
        mine = {s.token for s in self.systems}
        for t in self.take_outs:
            if t.status is RequestStatus.OPEN:
                return (
                    f"the owner of node {t.node}: maxgreen node accept {t.number} --reading FILE --buyer-reading FILE"
                )
            if t.status is RequestStatus.ACCEPTED:
                return (
                    f"node {t.node} delivers until {utc(t.deliver_by_s * 1000)}, then maxgreen node finish {t.number}"
                )
            if t.status is RequestStatus.FINISHED:
                return f"the buyer: maxgreen owner confirm {t.number} --reading FILE"
        for r in self.storage:
            if r.status is RequestStatus.OPEN:
                who = "you" if r.node in mine else f"the owner of node {r.node}"
                return f"{who}: maxgreen node accept-storage {r.number}"
        if self.applications:
            return f"a member of the DAO: maxgreen dao admit {self.applications[0].number}"
        for x in self.lines_:
            if not x.opened_s:
                return "the operator opens the line when both agents have attested: maxgreen settle open-line"
        if self.systems and not self.lines_:
            return "the DAO approves a line: maxgreen dao line MINER.CHANNEL NODE.CHANNEL"
        return "nothing waits for you" if self.systems else "apply: maxgreen owner sample > system.toml"


def tell_take_out(with_: Session, exchange: Exchange, number: int) -> None:
    """Say where a take-out stands, and whose turn it is."""
    found = exchange.take_out(number)
    then = {
        RequestStatus.ACCEPTED: f"the node, until {utc(found.deliver_by_s * 1000)}: maxgreen node finish {number}",
        RequestStatus.FINISHED: f"the buyer: maxgreen owner confirm {number} --reading FILE",
        RequestStatus.SETTLED: "the buyer: maxgreen owner withdraw",
        RequestStatus.REFUSED: "the buyer: maxgreen owner withdraw",
    }.get(found.status, "")
    measured = exchange.measured_mws(number)
    with_.tell(
        {"request": number, "status": found.status.label, "measured_mws": str(measured)},
        f"take-out {number}: {found.status.label}, {kwh(measured)} by the meters",
        then=then,
    )


def _tell_shares(with_: Session, target: Pool) -> None:
    shares, value = target.shares(with_.account.address)
    with_.tell(
        {"shares": str(shares), "value_wei": str(value)}, f"yours: {tokens(shares)} shares, worth {tokens(value)} kWh"
    )


def _lines_of(deployment: Deployment, address: str) -> Iterator[Line]:
    contract = SettlementContract(deployment)
    mine = {s.token for s in each_system(deployment) if s.owner.lower() == address.lower()}
    for name in contract.line_ids():
        found = contract.line(name)
        if found.ends.miner_token in mine or found.ends.node_token in mine:
            yield found


def _proved(with_: Session, system: Path, proof: Path) -> tuple[bytes, bytes, SystemSpec, dict[str, Any]]:
    """Read a system and its device's proof; UsageError says which of both does not fit, before anything is sent."""
    spec = read_system(system)
    try:
        signed = read_proof(json.loads(proof.read_text()))
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"proof {proof}: not what 'maxgreen agent prove' prints ({error})") from error
    check_proof(with_.deployment, with_.account.address, spec, signed, f" {proof}")
    return signed["spki"], signed["signature"], spec, signed


def _is_miner(end: str) -> bool:
    if end not in {"miner", "node"}:
        raise UsageError(f"end {end!r}: expected miner or node")
    return end == "miner"


def _texts(amounts: dict[str, int]) -> dict[str, str]:
    return {name: str(amount) for name, amount in amounts.items()}
