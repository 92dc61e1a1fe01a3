"""What people sign by: sentences made of bytes that anybody may have written."""

import time

import pytest
from eth_abi.abi import encode
from web3 import Web3

from maxgreen.actions.ballots import Ballots
from maxgreen.actions.calls import decode_call, decode_calls
from maxgreen.said import joined, quoted, said
from tests.chain.world import embedded


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("calls"))


def data_of(call):
    return bytes.fromhex(call._encode_transaction_data()[2:])


def decoded(world, call):
    return decode_call(world.deployment, call.address, data_of(call))


def test_numbers_that_stand_for_nothing_are_no_traceback(world):
    registry = world.deployment.registry
    data = data_of(registry.functions.setStatus(1, 3, "x")).replace((3).to_bytes(32, "big"), (200).to_bytes(32, "big"))
    found = decode_call(world.deployment, registry.address, data)
    assert found.odd
    assert "unknown call" in found.says
    assert decode_call(world.deployment, registry.address, data[:7]).odd


def test_words_of_others_cannot_be_taken_for_ours(world):
    evil = "inspected; and pay everything\u202e\n” from the operator"
    found = decoded(world, world.deployment.registry.functions.setStatus(1, 2, evil))
    assert found.says == "set system 1 to suspended: “inspected; and pay everything ' from the operator”"
    module = world.deployment.functions("ModuleRegistry").set("agent, from https://good", "1", bytes(32), "x" * 5_000)
    says = decoded(world, module).says
    assert says.startswith("release “agent, from https://good” “1”, SHA-256 0x00")
    assert len(says) < 600


def test_power_money_for_strangers_and_calls_in_calls_are_odd(world):
    authority, stranger = world.deployment.functions("Authority"), Web3.to_checksum_address("0x" + "be" * 20)
    deca = world.deployment.functions("Deca")
    exchange = world.deployment.address_of("EnergyExchange")
    inner = data_of(authority.grantRole(0, stranger, 0))
    for call, odd in (
        (authority.grantRole(0, stranger, 0), True), (authority.multicall([inner]), True),
        (authority.execute(world.deployment.address_of("Authority"), inner), True),
        (deca.approve(stranger, 2**256 - 1), True), (deca.approve(exchange, 1), False),
        (world.deployment.functions("Rewards").sweep(), False),
    ):  # fmt: skip
        assert decoded(world, call).odd is odd, call
    endless = decoded(world, deca.approve(stranger, 2**256 - 1)).says
    assert endless == f"let THE STRANGER {stranger} take any amount of DECA"
    [one] = decode_calls(world.deployment, [exchange], [b""], [5 * 10**18])
    assert one.says.startswith("send 5 of the chain's own currency with: ")
    assert one.odd


def test_proposals_in_proposals_cost_nothing(world):
    """Kilobytes that name the same tail again and again."""
    governor = world.deployment.governor
    data = data_of(world.deployment.functions("Rewards").sweep())
    for _ in range(4):
        data = data_of(governor.functions.propose([governor.address] * 14, [0] * 14, [data] * 14, "x"))
    begun = time.process_time()
    found = decode_call(world.deployment, governor.address, data)
    assert "look closely" in found.says
    one = data_of(governor.functions.propose([governor.address], [0], [b""], "x"))
    wide = decode_calls(world.deployment, [governor.address] * 4_000, [one] * 4_000, [0] * 4_000)
    assert len(wide) == 51
    assert wide[-1].says == "3950 calls more: look closely"
    assert time.process_time() - begun < 30  # it was minutes


def test_bytes_that_are_no_text_stop_nobody(world):
    """No contract checks that a string is UTF-8."""
    governor, chain, member = world.deployment.governor, world.chain, world.members[0]
    call = world.deployment.functions("Rewards").sweep()
    fine = "Mint \u2603 and \ufffd"
    suffix = f" #proposer={member.address.lower()}".encode()
    types = ["address[]", "uint256[]", "bytes[]", "bytes"]  # a string is bytes to the ABI
    data = governor.functions.propose([call.address], [0], [data_of(call)], fine)._encode_transaction_data()[:10]
    body = encode(types, [[call.address], [0], [data_of(call)], b"\xff\xfe\xc0" + suffix])
    chain.send(member, governor.address, bytes.fromhex(data[2:]) + body)
    [ballot] = Ballots(world.deployment, world.clock).all()
    assert ballot.description.startswith("\ufffd")
    uri = encode(["string"], [fine])
    assert chain.web3.codec.decode(["string"], uri) == (fine,)


def test_a_sentence_can_be_said_in_another_language():
    inner = said("give {amount} to {who}", amount=3, who="0xab")
    text = said("propose to {calls}", calls=joined("; ", [inner, said("sweep")]))
    assert text == "propose to give 3 to 0xab; sweep"
    spanish = {"give {amount} to {who}": "dar {amount} a {who}", "propose to {calls}": "proponer {calls}"}
    assert text.by(lambda template: spanish.get(template, template)) == "proponer dar 3 a 0xab; sweep"
    assert quoted("a\u200bb {x}") == "“ab {x}”"
