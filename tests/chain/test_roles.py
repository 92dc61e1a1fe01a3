"""The role table, walked with a stranger's account over every function of every contract that changes something."""

import pytest

from maxgreen.chain import roles
from maxgreen.chain.artifacts import artifact
from maxgreen.chain.dao import Proposal
from maxgreen.chain.deploying import selector_of
from maxgreen.chain.deployment import FIELDS
from maxgreen.chain.explain import ChainRefusedError
from tests.chain.world import embedded
from tests.conftest import ROOT

# What anybody may call, because it is theirs, or because it is guarded by what they show.
OPEN = {
    "Authority": {"multicall", "renounceRole", "consumeScheduledOp", "cancel", "execute", "schedule"},
    "DaoBadge": {"delegate", "delegateBySig", "announceLapse", "lapse", "present", "takeUp"},
    "MinerRegistry": {"applyFor", "rotateKey", "requestKey"},
    "LineBook": {"agreeToClose", "takeBackClosing"},
    "EnergyToken": {"approve", "permit", "transfer", "transferFrom"},
    "Deca": {"approve", "permit", "transfer", "transferFrom", "burn", "burnFrom"},
    "EnergyPool": {"approve", "transfer", "transferFrom", "redeem"},
    "EnergyExchange": {"requestStorage", "answerStorage", "decline", "withdraw"},
    "Electorate": {"refresh", "delegate", "delegateBySig"},
    "TechGovernor": {
        "propose", "queue", "execute", "cancel", "castVote", "castVoteBySig", "castVoteWithReason",
        "castVoteWithReasonAndParams", "castVoteWithReasonAndParamsBySig", "onERC721Received", "onERC1155Received",
        "onERC1155BatchReceived",
    },
    "Timelock": {"renounceRole", "onERC721Received", "onERC1155Received", "onERC1155BatchReceived"},
}  # fmt: skip
OPEN |= {"MaxCoin": OPEN["Deca"], "CarbonToken": OPEN["Deca"], "ModuleGovernor": OPEN["TechGovernor"]}
OPEN |= {"ModuleTimelock": OPEN["Timelock"]}
SOUL_BOUND = {"approve", "setApprovalForAll", "transferFrom", "safeTransferFrom"}
SHUT = {
    "AccessManagedUnauthorized", "AccessManagerUnauthorizedAccount", "AccessControlUnauthorizedAccount",
    "GovernorOnlyExecutor", "NotWriter", "NotGuardian", "TimelockUnauthorizedCaller",
}  # fmt: skip
NO_CHANGE = {"view", "pure"}


def changing(contract):
    """Return (name, ABI) of every function that changes something."""
    found = [e for e in artifact(contract)["abi"] if e["type"] == "function" and e["stateMutability"] not in NO_CHANGE]
    return [(entry["name"], entry) for entry in found]


def nothing(parameter):
    """Return a value of a type that says nothing."""
    kind = parameter["type"]
    if kind.endswith("]"):
        size = kind[kind.rindex("[") + 1 : -1]
        return [nothing({**parameter, "type": kind[: kind.rindex("[")]}) for _ in range(int(size or 0))]
    if kind == "tuple":
        return tuple(nothing(component) for component in parameter["components"])
    if kind.startswith("bytes"):
        return bytes(int(kind[5:] or 0))
    return {"address": "0x" + "0" * 40, "string": "", "bool": False}.get(kind, 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = embedded(tmp_path_factory.mktemp("roles"))
    from maxgreen.chain.market import KWH_WEI, Pool, pool_opening

    world.enrol().open()
    world.pass_(pool_opening(world.deployment, 2, [KWH_WEI] * 3, [KWH_WEI] * 4))
    world.places = {name: world.deployment.address_of(name) for name in FIELDS}
    world.places["EnergyPool"] = Pool(world.deployment, 2).address
    world.places["EnergyToken"] = world.deployment.energy_token(2).address
    return world


@pytest.mark.parametrize("contract", [*FIELDS, "EnergyPool"])
def test_a_stranger_changes_nothing_that_the_table_does_not_give_it(world, contract):
    everybody = {
        name for right in roles.RIGHTS if right.contract == contract and right.role == roles.PUBLIC
        for name in right.functions
    }  # fmt: skip
    soul_bound = contract in {"DaoBadge", "MinerRegistry"}
    functions = world.functions(contract, world.places[contract])
    seen = set()
    for name, abi in changing(contract):
        seen.add(name)
        signature = f"{name}({','.join(typed(p) for p in abi['inputs'])})"
        call = functions[signature](*[nothing(parameter) for parameter in abi["inputs"]])
        if name in OPEN.get(contract, set()) | everybody or (soul_bound and name in SOUL_BOUND):
            continue
        with pytest.raises(ChainRefusedError) as caught:
            world.chain.call(call, sender=world.stranger.address)
        assert caught.value.name in SHUT, f"{contract}.{signature}: {caught.value}"
    assert OPEN.get(contract, set()) | everybody <= seen


def test_what_the_guardian_stops_nobody_does(world):
    authority = world.functions("Authority")
    for right in roles.RIGHTS:
        for name in right.functions if right.stoppable else ():
            target, selector = world.deployment.address_of(right.target), selector_of(right.contract, name)
            abi = next(entry for known, entry in changing(right.contract) if known == name)
            functions = world.functions(right.contract, world.places[right.contract])
            call = functions[name](*map(nothing, abi["inputs"]))
            if right.role == roles.PUBLIC and right.contract != "Rewards":  # these may always be swept
                with pytest.raises(ChainRefusedError) as caught:
                    world.chain.call(call, sender=world.stranger.address)
                assert caught.value.name not in SHUT, f"{right.contract}.{name}: {caught.value}"
            world.send(world.guardian, authority.stop(target, selector))
            with pytest.raises(ChainRefusedError, match="AccessManagedUnauthorized"):
                world.chain.call(call, sender=world.stranger.address)
    settlement = world.deployment.address_of("EnergySettlement")
    world.pass_(Proposal((authority.setTargetClosed(settlement, True),), "Close what pays"))
    for name, abi in changing("EnergySettlement"):
        call = world.functions("EnergySettlement")[name](*map(nothing, abi["inputs"]))
        with pytest.raises(ChainRefusedError, match="AccessManagedUnauthorized"):
            world.chain.call(call, sender=world.stranger.address)


def typed(parameter):
    """Return a parameter's type as signatures have it."""
    if not parameter["type"].startswith("tuple"):
        return parameter["type"]
    inside = ",".join(typed(component) for component in parameter["components"])
    return f"({inside}){parameter['type'][5:]}"


def test_the_documentation_has_the_table():
    text = (ROOT / "docs/contracts.md").read_text()
    for right in roles.RIGHTS:
        rows = [row for row in text.splitlines() if row.startswith("|") and roles.NAMES[right.role] in row]
        for name in right.functions:
            assert any(f"`{name}`" in row or f".{name}`" in row for row in rows), f"{right.contract}.{name}"
    own = {
        "DaoBadge": {"announceLapse", "lapse", "present", "takeUp"}, "MinerRegistry": OPEN["MinerRegistry"], "LineBook": OPEN["LineBook"],
        "EnergyExchange": OPEN["EnergyExchange"], "Electorate": {"refresh"}, "EnergyPool": {"redeem"},
    }  # fmt: skip
    for contract, names in own.items():
        for name in names:
            assert f"`{name}`" in text or f"{contract}.{name}`" in text, f"{contract}.{name}"
