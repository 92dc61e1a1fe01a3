"""What owners do with their tokens: a node's pool, and energy stored and taken out. Amounts in wei, energy in mW·s."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from web3.contract.contract import Contract, ContractFunction
from web3.logs import DISCARD

from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import NOBODY, Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.orders import attestation_values
from maxgreen.chain.registry import name_fields
from maxgreen.errors import Retryable, UsageError
from maxgreen.protocol.attestation import Attestation
from maxgreen.said import said
from maxgreen.units import kwh

KWH_WEI: Final = 10**18
COINS: Final = {"energy": "EnergyToken", "deca": "Deca", "maxcoin": "MaxCoin", "carbon": "CarbonToken"}
_DEADLINE_S: Final = 900
_PPM: Final = 10**6


def wei_of(energy_mws: int) -> int:
    """Return the tokens of an energy, rounded down: 1 token is 1 kWh (settlement.md, What is paid)."""
    return energy_mws * 2_500_000_000 // 9


def coin(deployment: Deployment, name: str, node: int = 0) -> Contract:
    """Return the token of a name: energy (of a node), deca, maxcoin or carbon."""
    if name not in COINS:
        raise UsageError(f"token {name!r}: expected one of {', '.join(COINS)}")
    if name == "energy":
        return deployment.energy_token(node)
    return deployment.chain.contract(COINS[name], deployment.address_of(COINS[name]))


def balances(deployment: Deployment, address: str, nodes: Sequence[int]) -> dict[str, int]:
    """Return what an account holds of every token, wei: `energy N` for each node."""
    found = {}
    for name in COINS:
        for node in nodes if name == "energy" else (0,):
            functions: Any = coin(deployment, name, node).functions
            label = f"energy {node}" if name == "energy" else name
            found[label] = int(deployment.chain.call(functions.balanceOf(address)))
    return found


def sweep(deployment: Deployment, account: LocalAccount) -> Any:
    """Mint the coins that are due on paid energy, to the vault."""
    return deployment.chain.transact(account, deployment.functions("Rewards").sweep())


class Pool:
    """A storage node's pool."""

    def __init__(self, deployment: Deployment, node: int) -> None:
        """UsageError when the DAO opened none."""
        self._chain = deployment.chain
        self._deployment = deployment
        self.node = node
        self.address = str(self._chain.call(deployment.functions("EnergyPools").poolOf(node)))
        if self.address == NOBODY:
            raise UsageError(f"node {node}: the DAO has opened no pool for it")
        self._functions: Any = self._chain.contract("EnergyPool", self.address).functions

    def token(self, name: str) -> str:
        """Return the address of one of the pool's tokens."""
        return str(coin(self._deployment, name, self.node).address)

    def reserves(self) -> dict[str, int]:
        """Return what the pool holds of each token."""
        return {name: int(self._chain.call(self._functions.reserveOf(self.token(name)))) for name in COINS}

    def per_kwh(self) -> dict[str, int]:
        """Return what a kWh is worth of each token: the pool's parity."""
        return {name: int(self._chain.call(self._functions.perKwh(self.token(name)))) for name in COINS}

    def shares(self, address: str) -> tuple[int, int]:
        """Return an account's shares, and what they are worth in wei of energy tokens."""
        shares = int(self._chain.call(self._functions.balanceOf(address)))
        return shares, int(self._chain.call(self._functions.valueOf(shares)))

    def worth(self, shares: int) -> int:
        """Return what shares are worth, in wei of energy tokens."""
        return int(self._chain.call(self._functions.valueOf(shares)))

    def quote(self, token_in: str, amount: int, token_out: str) -> int:
        """Return what a swap gives now, its fee taken."""
        return int(self._chain.call(self._functions.quote(self.token(token_in), amount, self.token(token_out))))

    def deposit(self, account: LocalAccount, token: str, amount: int) -> Any:
        """Put tokens into the pool for shares."""
        call = self._functions.deposit(self.token(token), amount, 1, self._deadline())
        self._allow(account, token, amount, call)
        return self._chain.transact(account, call)

    def swap(self, account: LocalAccount, token_in: str, amount: int, token_out: str, *, slippage_ppm: int = 0) -> Any:
        """Exchange tokens at the pool's parity; what it gives is at least the quote less a slippage."""
        quoted, held = self.quote(token_in, amount, token_out), self.reserves()[token_out]
        if quoted > held:  # the chain looks after the tokens that are given
            raise UsageError(
                said(
                    "the pool holds {held} {token}, and would give {quoted}",
                    held=coins(held),
                    token=said(token_out),
                    quoted=coins(quoted),
                )
            )
        least = quoted * (_PPM - slippage_ppm) // _PPM
        call = self._functions.swap(self.token(token_in), amount, self.token(token_out), least, self._deadline())
        self._allow(account, token_in, amount, call)
        return self._chain.transact(account, call)

    def redeem(self, account: LocalAccount, shares: int) -> Any:
        """Take out a part of each reserve."""
        return self._chain.transact(account, self._functions.redeem(shares, [0] * 4, self._deadline()))

    def redeem_in(self, account: LocalAccount, token: str, shares: int) -> Any:
        """Take out one token, as far as the pool has it."""
        call = self._functions.redeemIn(self.token(token), shares, 1, self._deadline())
        return self._chain.transact(account, call)

    def _deadline(self) -> int:
        return self._chain.now_s() + _DEADLINE_S

    def _allow(self, account: LocalAccount, name: str, amount: int, call: ContractFunction) -> None:
        allow(self._deployment, account, {coin(self._deployment, name, self.node): amount}, call)


def allow(
    deployment: Deployment, account: LocalAccount, amounts: Mapping[Contract, int], call: ContractFunction
) -> None:
    """Let a call's contract take amounts of an account's tokens, as far as it may not yet.

    UsageError where the account has not as many, ChainRefusedError where the call would be refused for another reason:
    nobody signs an allowance for what then does not go.
    """
    chain, missing = deployment.chain, []
    for token, amount in amounts.items():
        functions: Any = token.functions
        if chain.call(functions.allowance(account.address, call.address)) < amount:
            missing.append((functions, amount))
    if missing:
        try:
            chain.call(call, sender=account.address)
        except ChainRefusedError as error:
            if error.name != "ERC20InsufficientAllowance":
                raise
    for functions, amount in missing:
        held = int(chain.call(functions.balanceOf(account.address)))
        if held < amount:
            name = chain.call(functions.name())
            raise UsageError(
                said(
                    "you hold {held} {token}, and this needs {amount}",
                    held=coins(held),
                    token=name,
                    amount=coins(amount),
                )
            )
    for functions, amount in missing:
        chain.transact(account, functions.approve(call.address, amount))


def coins(amount_wei: int) -> str:
    """Return an amount of tokens for people, whole: 1.5."""
    return f"{amount_wei // KWH_WEI}.{amount_wei % KWH_WEI:018}".rstrip("0").rstrip(".")


def pool_opening(deployment: Deployment, node: int, coins_per_kwh: Sequence[int], caps: Sequence[int]) -> Proposal:
    """Return the proposal that opens a node's pool.

    `coins_per_kwh` are DECA, MaxCoin and CarbonToken, `caps` the most it keeps of energy tokens and of these.
    """
    call = deployment.functions("EnergyPools").open(node, list(coins_per_kwh), list(caps))
    return Proposal((call,), f"Open a pool of node {node}")


class RequestStatus(IntEnum):
    """Where a storage or take-out request stands."""

    NONE = 0
    OPEN = 1
    ACCEPTED = 2
    FINISHED = 3
    SETTLED = 4
    REFUSED = 5
    CANCELLED = 6

    @property
    def label(self) -> str:
        """The status as people write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class StorageRequest:
    """A miner asks a node to store energy."""

    number: int
    miner: int
    node: int
    energy_mws: int
    expires_s: int
    status: RequestStatus


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Energy that a buyer takes out of a node's storage; `amount_wei` and `carbon_wei` are in escrow."""

    number: int
    buyer: str
    buyer_token: int
    buyer_channel: int
    node: int
    node_channel: int
    status: RequestStatus
    expires_s: int
    deliver_by_s: int
    silent_at_s: int
    amount_wei: int
    carbon_wei: int
    node_start_mws: int
    node_end_mws: int
    node_end_s: int
    buyer_start_mws: int
    buyer_end_mws: int


class Exchange:
    """EnergyExchange of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._chain = deployment.chain
        self._contract = self._chain.contract("EnergyExchange", deployment.address_of("EnergyExchange"))
        self._functions: Any = self._contract.functions

    def storage_requests(self) -> Iterator[StorageRequest]:
        """Yield all storage requests, the newest first."""
        for number in range(int(self._chain.call(self._functions.storageRequests())), 0, -1):
            yield self.storage_request(number)

    def storage_request(self, number: int) -> StorageRequest:
        """Return a storage request; its status is NONE where there is none."""
        value = self._named("storageAt", number)
        miner, node, energy_mws, expires_s = (value[n] for n in ("minerToken", "nodeToken", "energy", "expiresAt"))
        return StorageRequest(number, miner, node, energy_mws, expires_s, RequestStatus(value["status"]))

    def take_outs(self) -> Iterator[TakeOut]:
        """Yield all take-out requests, the newest first."""
        for number in range(int(self._chain.call(self._functions.takeOuts())), 0, -1):
            yield self.take_out(number)

    def take_out(self, number: int) -> TakeOut:
        """Return a take-out request; UsageError when there is none."""
        value = self._named("takeOutAt", number)
        status = RequestStatus(value["status"])
        if status is RequestStatus.NONE:
            raise UsageError(f"there is no take-out request {number}")
        return TakeOut(
            number=number,
            buyer=value["buyer"],
            buyer_token=value["buyerToken"],
            buyer_channel=value["buyerChannel"],
            node=value["nodeToken"],
            node_channel=value["nodeChannel"],
            status=status,
            expires_s=value["expiresAt"],
            deliver_by_s=value["deliverBy"],
            silent_at_s=value["silentAt"],
            amount_wei=value["amount"],
            carbon_wei=value["carbon"],
            node_start_mws=value["nodeStart"]["register"],
            node_end_mws=value["nodeEnd"]["register"],
            node_end_s=value["nodeEnd"]["time"],
            buyer_start_mws=value["buyerStart"]["register"],
            buyer_end_mws=value["buyerEnd"]["register"],
        )

    def request_storage(self, owner: LocalAccount, miner: int, node: int, energy_mws: int, valid_s: int) -> int:
        """Ask a node to store energy; return the request's number."""
        call = self._functions.requestStorage(miner, node, energy_mws, self._chain.now_s() + valid_s)
        return self._number(owner, call, "StorageRequested")

    def answer_storage(self, account: LocalAccount, number: int, *, accept: bool) -> Any:
        """Accept or refuse (a node), or cancel (a miner)."""
        return self._chain.transact(account, self._functions.answerStorage(number, accept))

    def request_take_out(
        self, owner: LocalAccount, buyer: int, channel: int, node: int, amount_wei: int, valid_s: int
    ) -> int:
        """Put tokens in escrow for energy of a node, metered by a channel of the buyer; return the request's number."""
        call = self._functions.requestTakeOut(buyer, channel, node, amount_wei, self._chain.now_s() + valid_s)
        amounts = {coin(self._deployment, "energy", node): amount_wei}
        per_kwh = int(self._chain.call(self._functions.carbonPerKwh()))
        if carbon := -(-amount_wei * per_kwh // KWH_WEI):
            amounts[coin(self._deployment, "carbon")] = carbon
        allow(self._deployment, owner, amounts, call)
        return self._number(owner, call, "TakeOutRequested")

    def accept(self, owner: LocalAccount, number: int, node_start: Attestation, buyer_start: Attestation) -> Any:
        """Accept a take-out with the registers of both meters before the delivery, not older than an hour."""
        values = (attestation_values(node_start), attestation_values(buyer_start))
        return self._chain.transact(owner, self._functions.accept(number, node_start.channel, *values))

    def decline(self, account: LocalAccount, number: int) -> Any:
        """Refuse (a node) or cancel (a buyer) what was not accepted."""
        return self._chain.transact(account, self._functions.decline(number))

    def finish(self, account: LocalAccount, number: int, end: Attestation) -> Any:
        """Close a delivery with the node's register."""
        return self._chain.transact(account, self._functions.finish(number, attestation_values(end)))

    def confirm(self, account: LocalAccount, number: int, end: Attestation) -> Any:
        """Show the buyer's register of after the delivery."""
        return self._chain.transact(account, self._functions.confirm(number, attestation_values(end)))

    def settle(self, account: LocalAccount, number: int) -> Any:
        """Settle by one meter, when the other was silent for two weeks."""
        return self._chain.transact(account, self._functions.settle(number))

    def measured_mws(self, number: int) -> int:
        """Return what the meters say was delivered so far."""
        return int(self._chain.call(self._functions.measured(number)))

    def decision(self, number: int, energy_mws: int) -> Proposal:
        """Return the proposal that decides what was delivered."""
        return Proposal(
            (self._functions.decide(number, energy_mws),), f"Decide take-out {number}: {kwh(energy_mws)} kWh"
        )

    def owed(self, address: str, token: str) -> int:
        """Return what an account can withdraw of a token."""
        return int(self._chain.call(self._functions.owed(address, token)))

    def withdraw(self, account: LocalAccount, token: str) -> Any:
        """Take back what is not in escrow any more."""
        return self._chain.transact(account, self._functions.withdraw(token))

    def _named(self, function: str, number: int) -> Any:
        abi = self._contract.get_function_by_name(function).abi["outputs"][0]
        return name_fields(abi, self._chain.call(self._functions[function](number)))

    def _number(self, owner: LocalAccount, call: ContractFunction, event: str) -> int:
        receipt = self._chain.transact(owner, call)
        for found in self._contract.events[event]().process_receipt(receipt, errors=DISCARD):
            if found["address"] == self._contract.address:
                return int(found["args"]["id"])
        raise Retryable(
            "the chain's RPC gave a receipt without the request: look whether it is there, with another RPC"
        )
