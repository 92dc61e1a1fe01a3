"""`maxgreen dao`: what members of the technical DAO see, propose, vote on and carry out."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer
from eth_utils.address import is_address, to_checksum_address

from maxgreen.actions.all import ACTIONS
from maxgreen.actions.ballots import Ballot, Ballots, waiting
from maxgreen.actions.catalog import Context
from maxgreen.actions.dao_actions import CODES, VOTES, governor_of
from maxgreen.actions.session import Session, group, kwh, line_id, read_file, session
from maxgreen.chain.claims import parse_claims
from maxgreen.chain.dao import Proposal, ProposalState
from maxgreen.chain.doctor import diagnose
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.orders import Exclusion, OrderStatus, SettlementContract
from maxgreen.chain.registry import admission, application
from maxgreen.clock import utc
from maxgreen.errors import UsageError

app = group("Members of the technical DAO: look, propose, vote, carry out.")


ModulesOption = Annotated[bool, typer.Option("--modules", help="of the vote on modules, not of the technical DAO")]
ProposalArgument = Annotated[
    str, typer.Argument(help="the proposal's first digits, as 'dao list' prints them, or latest")
]
CodeArgument = Annotated[int, typer.Argument(help=", ".join(f"{code} {name}" for code, name in CODES.items()))]


@app.command("list")
def list_(
    ctx: typer.Context,
    ended: Annotated[bool, typer.Option(help="also what is over")] = False,
    modules: ModulesOption = False,
) -> None:
    """List what waits: proposals with votes and times, applications, orders."""
    with_ = session(ctx)
    ballots = _ballots(with_, modules=modules)
    found = [(b, ballots.state(b)) for b in ballots.all()] if ended else list(waiting(ballots))
    rows = [_row(ballots, ballot, state) for ballot, state in found]
    contract = SettlementContract(with_.deployment)
    total = int(with_.deployment.chain.call(with_.deployment.registry.functions.applications()))
    applications = [a for n in range(1, total + 1) if not (a := application(with_.deployment, n)).token]
    count = contract.order_count()
    order = count if count and contract.order(count).status is OrderStatus.POSTED else None
    lines = [f"{r['proposal']}  {r['state']:<9} {r['votes']}  {r['until']}  {r['description']}" for r in rows]
    lines += [f"application {a.number} waits: {a.spec.kind.label} of {a.applicant}" for a in applications]
    lines += [f"order {order} waits: 'maxgreen dao order {order}' shows it"] if order else []
    with_.tell(
        {"proposals": rows, "applications": [a.number for a in applications], "order": order},
        *(lines or ["nothing waits"]),
        then=f"maxgreen dao show PROPOSAL{ballots.option}, then maxgreen dao vote PROPOSAL for{ballots.option}"
        if rows
        else "",
    )


@app.command()
def show(ctx: typer.Context, proposal: ProposalArgument, modules: ModulesOption = False) -> None:
    """Show a proposal: its calls decoded, what they would change, its votes and what comes next."""
    with_, ballots, ballot = _named(ctx, proposal, modules=modules)
    state = ballots.state(ballot)
    calls = ballots.calls(ballot)
    row = _row(ballots, ballot, state)
    with_.tell(
        {**row, "proposer": ballot.proposer, "calls": [call.to_json() for call in calls]},
        f"proposal {ballot.short} by {ballot.proposer}: {row['state']}, {row['votes']}",
        f"its text (which decides nothing): {ballot.description}",
        "what it would do:",
        *(f"  {number}. {call.says}" for number, call in enumerate(calls, 1)),
        then=_then(ballots, ballot, state),
    )


@app.command()
def order(ctx: typer.Context, number: Annotated[int, typer.Argument(help="the order's number")]) -> None:
    """Show an order: what is asked for, and how its evidence is checked."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    found, posting = contract.order(number), contract.posting(number)
    paid = contract.total_paid_mws()
    with_.tell(
        {
            "order": number,
            "status": found.status.label,
            "until": posting.until_s,
            "lines": posting.count,
            "total_mws": str(posting.total_mws),
            "paid_mws": str(paid),
            "root": posting.root.hex(),
            "manifest": posting.manifest_digest.hex(),
            "evidence": posting.evidence,
            "code": found.code,
            "text": found.text,
        },
        f"order {number}: {found.status.label}{f' ({found.code}: {found.text})' if found.code else ''}",
        f"until {utc(posting.until_s * 1000)}: {posting.count} lines, {kwh(posting.total_mws)} since they opened, "
        f"{kwh(paid)} of it paid already",
        f"evidence: {posting.evidence or 'ask the operator'}, manifest {posting.manifest_digest.hex()}",
        then="maxgreen audit PACK --rpc URL --deployment FILE; then "
        f"maxgreen dao approve {number}, or reject {number} CODE TEXT"
        if found.status is OrderStatus.POSTED
        else "",
    )


@app.command()
def vote(
    ctx: typer.Context,
    proposal: ProposalArgument,
    choice: Annotated[str, typer.Argument(help="for, against or abstain")],
    reason: Annotated[str, typer.Option(help="why; everybody can read it")] = "",
    modules: ModulesOption = False,
) -> None:
    """Vote, once. What more than half of all members vote for passes."""
    if choice not in VOTES:
        raise UsageError(f"vote {choice!r}: expected one of {', '.join(VOTES)}")
    with_, ballots, ballot = _named(ctx, proposal, modules=modules)
    state = ballots.state(ballot)
    if state is not ProposalState.ACTIVE:
        raise UsageError(f"proposal {ballot.short} is {state.name.lower()}: {_then(ballots, ballot, state)}")
    with_.act(lambda: ballots.dao.cast(with_.account, ballot.number, VOTES[choice], reason))
    row = _row(ballots, ballot, ballots.state(ballot))
    with_.tell(row, f"voted {choice} on {ballot.short}: {row['votes']}", then=_then(ballots, ballot, state))


@app.command()
def queue(ctx: typer.Context, proposal: ProposalArgument, modules: ModulesOption = False) -> None:
    """Put a proposal that passed into the timelock. Anyone may."""
    with_, ballots, ballot = _named(ctx, proposal, modules=modules)
    with_.act(lambda: ballots.dao.queue(with_.account, ballot.arguments))
    state = ballots.state(ballot)
    row = _row(ballots, ballot, state)
    with_.tell(row, f"{ballot.short} waits in the timelock", then=_then(ballots, ballot, state))


@app.command()
def execute(ctx: typer.Context, proposal: ProposalArgument, modules: ModulesOption = False) -> None:
    """Carry out a proposal whose timelock is over. Anyone may."""
    with_, ballots, ballot = _named(ctx, proposal, modules=modules)
    with_.act(lambda: ballots.dao.execute(with_.account, ballot.arguments))
    says = [call.says for call in ballots.calls(ballot)]
    with_.tell(_row(ballots, ballot, ballots.state(ballot)), f"{ballot.short} is carried out:", *says)


@app.command()
def admit(ctx: typer.Context, applications: Annotated[list[int], typer.Argument(help="their numbers")]) -> None:
    """Propose to admit applications, with exactly the content that they have now."""
    with_ = session(ctx)
    for number in applications:
        if not application(with_.deployment, number).applicant:
            raise UsageError(f"there is no application {number}")
    _propose(with_, admission(with_.deployment, applications))


@app.command()
def line(
    ctx: typer.Context,
    miner: Annotated[str, typer.Argument(help="TOKEN.CHANNEL of the miner's sent channel")],
    node: Annotated[str, typer.Argument(help="TOKEN.CHANNEL of the node's received channel")],
    resistance_uohm: Annotated[int, typer.Option(min=0, help="the line's resistance, µΩ")] = 0,
    loss_ppm: Annotated[int, typer.Option(min=0, help="expected loss, ppm of sent, where the resistance is 0")] = 0,
    max_loss_ppm: Annotated[int, typer.Option(min=0, help="the loss that is never accepted, ppm")] = 100_000,
    epoch: Annotated[int, typer.Option(min=0, help="how many lines between these ends were closed before")] = 0,
) -> None:
    """Propose to allow a line, or other loss terms for one."""
    _act(
        ctx,
        "line",
        miner=miner,
        node=node,
        resistance_uohm=resistance_uohm,
        loss_ppm=loss_ppm,
        max_loss_ppm=max_loss_ppm,
        epoch=epoch,
    )


@app.command()
def approve(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(help="the order's number")],
    exclude: Annotated[list[str] | None, typer.Option(help="LINE:CODE:TEXT of a line to leave out; repeat it")] = None,
) -> None:
    """Propose to approve an order as it is on the chain now."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    if not with_.deployment.chain.is_final(contract.order(number).posted_block):
        raise UsageError(f"order {number} is not final yet: the chain could still take it back; try again later")
    _propose(with_, contract.approval(number, contract.posting(number), [_exclusion(text) for text in exclude or ()]))


@app.command()
def reject(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(help="the order's number")],
    code: CodeArgument,
    text: Annotated[str, typer.Argument(help="why; the owners read it")],
) -> None:
    """Propose to reject an order."""
    _act(ctx, "reject", number=number, code=_code(code), text=text)


@app.command()
def hold(
    ctx: typer.Context,
    line: Annotated[str, typer.Argument(help="the line's id")],
    code: CodeArgument,
    text: Annotated[str, typer.Argument(help="why; the owners read it")],
) -> None:
    """Propose to stop the payment of a line."""
    _act(ctx, "hold", line=line, code=_code(code), text=text)


@app.command()
def release(ctx: typer.Context, line: Annotated[str, typer.Argument(help="the line's id")]) -> None:
    """Propose to pay a held line again."""
    _act(ctx, "release", line=line)


@app.command()
def forfeit(ctx: typer.Context, line: Annotated[str, typer.Argument(help="the line's id")]) -> None:
    """Propose to take back what a line was credited and not paid."""
    _act(ctx, "forfeit", line=line)


@app.command()
def close(ctx: typer.Context, line: Annotated[str, typer.Argument(help="the line's id")]) -> None:
    """Propose to close a line: its channels are free for another."""
    _act(ctx, "close", line=line)


@app.command()
def status(
    ctx: typer.Context,
    token: Annotated[int, typer.Argument(help="the system's token")],
    to: Annotated[str, typer.Argument(help="active, suspended or revoked")],
    text: Annotated[str, typer.Argument(help="why; the owner reads it")],
) -> None:
    """Propose another status for a system."""
    _act(ctx, "status", token=token, to=to, text=text)


@app.command("replace-key")
def replace_key(ctx: typer.Context, token: Annotated[int, typer.Argument(help="the system's token")]) -> None:
    """Propose to replace a system's key by the one that its owner asked for."""
    _act(ctx, "replace-key", token=token)


@app.command()
def pool(
    ctx: typer.Context,
    node: Annotated[int, typer.Argument(help="the storage node's token")],
    deca: Annotated[str, typer.Option(help="DECA that a kWh is worth")] = "1",
    maxcoin: Annotated[str, typer.Option(help="MaxCoin that a kWh is worth")] = "1",
    carbon: Annotated[str, typer.Option(help="CarbonToken that a kWh is worth")] = "1",
    cap: Annotated[str, typer.Option(help="the most tokens of each kind that it keeps")] = "1000000",
) -> None:
    """Propose to open a node's pool, at a parity that never changes."""
    _act(ctx, "pool", node=node, deca=deca, maxcoin=maxcoin, carbon=carbon, cap=cap)


@app.command()
def give(
    ctx: typer.Context,
    token: Annotated[str, typer.Argument(help="deca, maxcoin or carbon")],
    amount: Annotated[str, typer.Argument(help="how many")],
    to: Annotated[str, typer.Argument(help="whom: an address")],
) -> None:
    """Propose to give coins of the vault."""
    _act(ctx, "give", coin=token, amount=amount, to=to)


@app.command()
def provide(
    ctx: typer.Context,
    node: Annotated[int, typer.Argument(help="the storage node's token")],
    token: Annotated[str, typer.Argument(help="deca, maxcoin or carbon")],
    amount: Annotated[str, typer.Argument(help="how many")],
) -> None:
    """Propose to put coins of the vault into a node's pool; the shares are the vault's."""
    _act(ctx, "provide", node=node, coin=token, amount=amount)


@app.command()
def decide(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(help="the take-out's number")],
    energy: Annotated[str, typer.Argument(help="kWh that were delivered")],
) -> None:
    """Propose what a disputed take-out delivered."""
    _act(ctx, "decide", number=number, energy="" if energy == "0" else energy)


@app.command()
def member(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(help="add or remove")],
    address: Annotated[str, typer.Argument(help="the member's address")],
) -> None:
    """Propose another member, or one less."""
    _act(ctx, "member", what=what, address=address)


@app.command()
def module(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="agent, limits, backend keys, checks, …")],
    version: Annotated[str, typer.Argument(help="its version")],
    file: Annotated[Path, typer.Argument(help="what is released; its SHA-256 goes on the chain")],
    uri: Annotated[str, typer.Option(help="where it can be had")] = "",
) -> None:
    """Propose a version of a module to members and owners of active systems (see also --modules)."""
    with_ = session(ctx)
    digest = hashlib.sha256(read_file(file)).digest()
    call = with_.deployment.functions("ModuleRegistry").set(name, version, digest, uri)
    _propose(with_, Proposal((call,), f"Release {name} {version}"), modules=True)


@app.command()
def elector(ctx: typer.Context, address: Annotated[str, typer.Argument(help="of whom; else of you")] = "") -> None:
    """Take the vote on modules that membership or an active system gives, as it is now. Anyone may, for anyone."""
    with_ = session(ctx)
    who = _address(address) if address else with_.account.address
    functions = with_.deployment.functions("Electorate")
    with_.act(lambda: with_.deployment.chain.transact(with_.account, functions.refresh(who)))
    votes = bool(with_.deployment.chain.call(functions.isElector(who)))
    with_.tell({"address": who, "votes": votes}, f"{who} {'votes' if votes else 'does not vote'} on modules")


@app.command()
def members(ctx: typer.Context) -> None:
    """Who may vote, how long a vote takes, and how many votes pass."""
    with_ = session(ctx)
    facts = diagnose(with_.deployment).facts
    with_.tell(facts, *(f"{k}: {', '.join(v) if isinstance(v, list) else v}" for k, v in facts.items()))


@app.command("claims")
def claims_(ctx: typer.Context, file: Annotated[Path, typer.Argument(help="order.json of a period")]) -> None:
    """List the lines of an order.json, the largest first, with what of each was claimed."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    rows: list[dict[str, Any]] = []
    for claim in sorted(parse_claims(read_file(file)), key=lambda c: -c.payable_total_mws):
        known = contract.line(claim.line)
        rows.append(
            {
                "line": claim.line.hex(),
                "payable_mws": str(claim.payable_total_mws - known.paid_mws),
                "paid_mws": str(known.paid_mws),
                "hold": known.hold,
            }
        )
    with_.tell(
        {"lines": rows},
        *(f"{r['line']}: {kwh(int(r['payable_mws']))} to pay, {kwh(int(r['paid_mws']))} paid" for r in rows),
    )


def _ballots(with_: Session, *, modules: bool) -> Ballots:
    return Ballots(with_.deployment, with_.clock, governor_of("modules" if modules else "technical"))


def _named(ctx: typer.Context, proposal: str, *, modules: bool) -> tuple[Session, Ballots, Ballot]:
    with_ = session(ctx)
    ballots = _ballots(with_, modules=modules)
    return with_, ballots, ballots.find(proposal)


def _act(ctx: typer.Context, name: str, **given: object) -> None:
    """Propose what one of the actions proposes (`maxgreen.actions.dao_actions`)."""
    with_, action = session(ctx), ACTIONS[name]
    make = action.proposes
    if make is None:
        raise UsageError(f"{name}: proposes nothing")
    values = action.read({field: str(value) for field, value in given.items()})
    _propose(with_, make(Context(with_.deployment, with_.clock, with_.account), values))


def _propose(with_: Session, proposal: Proposal, *, modules: bool = False) -> None:
    """Propose, or find the same proposal under way; say what comes next."""
    ballots = _ballots(with_, modules=modules)
    attempt = ballots.next_attempt(proposal, with_.account.address)
    try:
        with_.act(lambda: ballots.dao.propose(with_.account, attempt))
    except ChainRefusedError as error:
        if error.name == "GovernorInsufficientProposerVotes":
            who = "no vote on modules: 'maxgreen dao elector' takes it" if modules else "no badge: only members propose"
            raise UsageError(f"{with_.account.address} holds {who}") from error
        raise
    ballot = ballots.find(f"{ballots.dao.id_of(attempt):064x}")
    state = ballots.state(ballot)
    row = _row(ballots, ballot, state)
    calls = ballots.calls(ballot)
    with_.tell(
        {**row, "calls": [call.to_json() for call in calls]},
        f"proposal {ballot.short}: {row['state']}",
        *(f"  {number}. {call.says}" for number, call in enumerate(calls, 1)),
        then=_then(ballots, ballot, state),
    )


def _row(ballots: Ballots, ballot: Ballot, state: ProposalState) -> dict[str, Any]:
    against, in_favour, abstaining = ballots.dao.votes_of(ballot.number)
    due_ms = ballots.dao.due_of(ballot.number, state)
    return {
        "proposal": ballot.short,
        "id": str(ballot.number),
        "state": state.name.lower(),
        "votes": f"{in_favour} for, {against} against, {abstaining} abstaining",
        "until": utc(due_ms) if due_ms else "",
        "description": ballot.description,
    }


def _then(ballots: Ballots, ballot: Ballot, state: ProposalState) -> str:
    due_ms = ballots.dao.due_of(ballot.number, state)
    until = utc(due_ms) if due_ms else "soon"
    named = f"{ballot.short}{ballots.option}"
    return {
        ProposalState.PENDING: f"voting begins {until}; then the members: maxgreen dao vote {named} for",
        ProposalState.ACTIVE: f"the members, until {until}: maxgreen dao vote {named} for|against|abstain",
        ProposalState.SUCCEEDED: f"anyone, within two weeks: maxgreen dao queue {named}",
        ProposalState.QUEUED: f"anyone, from {until} on, within two weeks: maxgreen dao execute {named}",
        ProposalState.EXECUTED: "nothing: it was carried out",
    }.get(state, "propose it again; the next attempt has a number of its own")


def _exclusion(text: str) -> Exclusion:
    line, code, why = [*text.split(":", 2), "", ""][:3]
    if not code.isdigit() or not why:
        raise UsageError(f"--exclude {text!r}: expected LINE:CODE:TEXT")
    _code(int(code))
    return Exclusion(line_id(line), int(code), why)


def _code(code: int) -> str:
    if code not in CODES:
        raise UsageError(f"code {code}: expected one of {', '.join(f'{k} {v}' for k, v in CODES.items())}")
    return CODES[code]


def _address(text: str) -> str:
    if not is_address(text):
        raise UsageError(f"address {text!r}: expected 0x and 40 hex digits")
    return str(to_checksum_address(text))
