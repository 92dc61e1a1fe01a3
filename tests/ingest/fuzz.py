"""Fuzzing of what outside bytes reach: the decoder, and judging with signed, structured mutants.

    python -m tests.ingest.fuzz decode|judge [atheris's arguments, for instance -runs=10000000 tests/ingest/corpus/judge]

Each input drives one run; the corpus in tests/ingest/corpus is replayed by the tests, beside random inputs.
"""

import random
import sys
from concurrent.futures import Executor, Future
from dataclasses import replace

from ingest.judging import Judge
from ingest.opening import check_all, check_shares_of, named, places_to_ask, read_all
from ingest.receipts import LIST, add_receipts, seqs_waiting
from maxgreen.ledger.desk import Chain, Desk, Due, Kept
from maxgreen.ledger.registry import KnownDevice
from maxgreen.mqtt import Incoming
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.batch import Event, Health, encode_batch
from maxgreen.protocol.cose import parse
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.reasons import Reason, Rejected
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Action, Decision, Limits, Rules
from maxgreen.verify.verdict import read_message
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

SIGNER = MemorySigner.from_secret(2)
LATER = T0_MS + 3_600_000
EXTREMES = (
    0,
    1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53 - 1,
    2**53,
    2**62 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
    4_102_444_800_000,
)


class Inline(Executor):
    """Runs at once, in this thread."""

    def submit(self, function, /, *arguments, **names):
        future = Future()
        future.set_result(function(*arguments, **names))
        return future


class Choices:
    """What an input decides; zeros when it is used up."""

    def __init__(self, data):
        self.data, self.at = data, 0

    @property
    def over(self):
        return self.at >= len(self.data)

    def pick(self, count):
        value = 0 if self.over else self.data[self.at]
        self.at += 1
        return value % count

    def take(self, size):
        part = self.data[self.at : self.at + size]
        self.at += size
        return part


class Memory:
    """A ledger in memory, as judging sees one."""

    def __init__(self, labs):
        self.rules = Rules(NETWORK, limits=[(0, Limits(pow_nbits_min=EASY))], beacons={7: beacon()})
        self.known = {lab.device: KnownDevice(lab.record(), k, "", {}) for k, lab in enumerate(labs)}
        self.chains = {}
        self.rows = {}
        self.received = LATER

    def waiting(self, device, from_seq, limit):
        rows = [row for row in self._rows(device, from_seq) if row.judgement is None]
        return [Kept(row.seq, row.message, row.received_ms, row.reason) for row in rows[:limit]]

    def undated(self, device, from_seq, limit):
        rows = [row for row in self._rows(device, from_seq) if _held(row) is Reason.CLOCK_UNSYNCHRONISED]
        return [_kept(row) for row in rows[:limit]]

    def suspended(self, device, limit):
        rows = [row for row in self._rows(device, 0) if _held(row) is Reason.SUSPENDED_DEVICE]
        return [_kept(row) for row in rows[:limit]]

    def _rows(self, device, from_seq):
        return sorted(
            (row for (owner, seq), row in self.rows.items() if owner == device and seq >= from_seq),
            key=lambda row: row.seq,
        )

    def judge(self, messages, due=()):
        """Judge a group as the worker does, and keep what it wrote."""
        self.received += 1_000
        read = read_all(messages)
        chains = {
            device: replace_chain(self.chains.get(device)) or Chain(known.record, ChainState.start(NETWORK))
            for device, known in self.known.items()
            if device in named(read) | set(due)
        }
        desk = Desk(chains)
        opened = check_all(
            messages, read, lambda d: desk.chains[d].record if d in desk.chains else None,
            NETWORK, self.received, Inline(),
        )  # fmt: skip
        asked = places_to_ask(desk, opened)
        desk.kept.update({place: self.rows[place].digest for place in asked if place in self.rows})
        judge = Judge(desk, self, self.rules, check_shares_of(opened, self.rules, Inline()))
        for chain in desk.chains.values():
            if chain.due:
                judge.go_on(chain)
        outcomes = [judge.handle(*pair, self.received) for pair in zip(messages, opened, strict=True)]
        deserving = {outcome.device for outcome in outcomes if outcome.device}
        waiting = {
            device: [k.seq for k in self.waiting(device, desk.chains[device].state.next_seq, LIST)]
            for device in deserving
        }
        add_receipts(
            desk, judge, sorted(deserving), seqs_waiting(desk, waiting), Limits(), SIGNER, NETWORK, self.received
        )
        self._write(desk)
        for device, _, message in desk.receipts:
            receipt, state = decode_receipt(parse(message).payload), desk.chains[device].state
            assert (receipt.next_seq, receipt.head) == (state.next_seq, state.head)
            assert all(seq >= receipt.next_seq for seq in receipt.held)

    def _write(self, desk):
        for place in desk.removed:
            assert self.rows.pop(place).judgement is None
        for place, row in desk.rows.items():
            assert place not in self.rows
            self.rows[place] = row
        for (device, seq), (judgement, before) in desk.judged.items():
            row = self.rows[device, seq]
            self.rows[device, seq] = replace(row, judgement=judgement, state_before=before)
        for device, chain in desk.chains.items():
            if chain.changed:
                chain.version += 1
                chain.changed = False
            if chain.version:
                self.chains[device] = chain

    def settle(self):
        for _ in range(200):
            due = [device for device, chain in self.chains.items() if chain.due]
            if not due:
                return
            self.judge([], due)
        raise AssertionError("chains stay due")

    def decide(self, device, action, from_seq, to_seq):
        decision = Decision(device, from_seq, to_seq, action, "", "", self.received, "")
        self.rules = Rules(
            NETWORK, limits=self.rules.limits, beacons=self.rules.beacons,
            decisions=[*self.rules.decisions, decision],
        )  # fmt: skip
        if device in self.chains:
            due = Due.CONTINUED if action is Action.CONTINUE else Due.DECIDED
            self.chains[device].due = max(self.chains[device].due, due)
        self.settle()

    def check(self):
        """Everything adds up, and judging the chains again gives the same."""
        for device, chain in self.chains.items():
            assert ChainState.from_bytes(chain.state.to_bytes()) == chain.state
            ahead = [row for row in self._rows(device, chain.state.next_seq) if row.judgement is None]
            assert (chain.waiting, chain.waiting_bytes) == (len(ahead), sum(len(row.message) for row in ahead))
            replay = Replay(ChainState.start(NETWORK), chain.record, self.rules)
            judged = {}
            for row in self._rows(device, 0):
                if row.judgement is not None:
                    signed = read_message(row.message)
                    for judgement in replay.take(signed, row.received_ms, skipped_to=row.judgement.skipped_to):
                        judged[judgement.seq] = judgement
            assert replace(chain.state, halted=False) == replay.state
            for row in self._rows(device, 0):
                if row.judgement is not None:
                    assert row.judgement == judged[row.seq]


def _held(row):
    return row.judgement.reason if row.judgement is not None else None


def _kept(row):
    judgement = row.judgement
    return Kept(row.seq, row.message, row.received_ms, judgement.reason, row.state_before, judgement.skipped_to)


def replace_chain(chain):
    """Return a copy, as a read from a database is."""
    if chain is None:
        return None
    return Chain(
        chain.record, chain.state, chain.version, chain.waiting, chain.waiting_bytes, chain.due, dict(chain.credited)
    )


def topic_of(message):
    try:
        return device_topic(parse(message).key_id, "batch")
    except Rejected:
        return "mg/v1/x"


def decode_one(data):
    """A message is a batch, or rejected; nothing else."""
    for message in (data, cose_around(data)):
        try:
            signed = read_message(message)
        except Rejected:
            continue
        assert encode_batch(signed.batch) == signed.envelope.payload


def cose_around(payload):
    from maxgreen.protocol import cbor, cose

    return cbor.encode(cbor.tag(cose.COSE_SIGN1, [cose.protected_header(bytes(16)), {}, payload, bytes(64)]))


def judge_one(data):
    """A device, and a thief with its key, send what the input says; return how many messages were judged."""
    choices = Choices(data)
    labs = [Lab(1), Lab(3)]
    memory = Memory(labs)
    sent, late, group, count = [], [], [], 0
    while not choices.over and count < 40:
        lab = labs[choices.pick(2)]
        made = _step(choices, lab, sent, late, memory)
        count += 1
        if made is None:
            continue
        sent.append(made)
        group.append(Incoming(topic_of(made), made))
        if choices.pick(3) == 0:
            memory.judge(group)
            group = []
    memory.judge(group)
    memory.settle()
    memory.check()
    return count


def _step(choices, lab, sent, late, memory):
    kind = choices.pick(16)
    if kind == 1:
        late.append(lab.next([(1, 1)], **({"synchronised": False, "t0_ms": 0} if choices.pick(2) else {})))
        return None
    if kind == 2 and sent:
        return sent[choices.pick(len(sent))]
    if kind in {0, 2} and late and choices.pick(2):
        return late.pop(choices.pick(len(late)))
    if kind == 3 and sent:
        data = bytearray(sent[choices.pick(len(sent))])
        if data:
            data[choices.pick(256) % len(data)] ^= 1 << choices.pick(8)
        return bytes(data)
    if kind == 4:
        return choices.take(choices.pick(64))
    if kind == 5:
        lab.reboot(choices.take(16).ljust(16, b"\0"), wall_ms=T0_MS + 60_000 * choices.pick(256))
        return None
    if kind == 6:
        action = [Action.SKIP, Action.CONTINUE, Action.REINSTATE, Action.REJECT][choices.pick(4)]
        first = choices.pick(12)
        memory.decide(lab.device, action, first, first + choices.pick(12))
        return None
    changes = _changes(choices, kind, lab)
    readings = [
        (18_000_000 + choices.pick(256), (choices.pick(256) - 20) * 10_000)
        for _ in range(choices.pick(4) + (kind != 7))
    ]
    before = (lab.seq, lab.head, dict(lab.meters), lab.boot_ms, lab.born)
    batch = lab.batch(readings, **changes)
    if kind == 8 and batch.channels:
        extreme = EXTREMES[choices.pick(len(EXTREMES))]
        name = ("register_mws", "reverse_mws", "gap_ms")[choices.pick(3)]
        batch = replace(batch, channels=tuple(replace(c, **{name: extreme}) for c in batch.channels))
    try:
        message = lab.sign(lab.attested(batch) if kind == 9 and batch.channels else batch)
    except Exception:  # the lab itself cannot encode it
        message = b""
    if kind in {10, 11}:  # another message for the same place: a thief with the key, or a forgotten state
        lab.seq, lab.head, lab.meters, lab.boot_ms, lab.born = before
    return message


def _changes(choices, kind, lab):
    changes = {}
    if kind in {7, 12}:
        changes |= {"synchronised": False, "t0_ms": 0}
    if kind == 13:
        name = ("seq", "t0_ms", "t0_boot_ms", "interval_ms", "clock_error_ms")[choices.pick(5)]
        changes[name] = EXTREMES[choices.pick(len(EXTREMES))]
    if kind == 14:
        changes["work"] = lab.work(beacon(), shares=1 + choices.pick(2))
        if choices.pick(2):
            changes["work"] = replace(changes["work"], nonces=(choices.pick(256),))
    if kind == 15:
        extreme = EXTREMES[choices.pick(len(EXTREMES))]
        changes["events"] = (Event(choices.pick(9), -extreme if choices.pick(2) else extreme, extreme),)
        changes["health"] = Health(cpu_mdeg=extreme, spool_records=extreme)
        changes["birth"] = lab.birth if choices.pick(2) else None
    return changes


def main():
    import atheris

    what = sys.argv.pop(1)
    one = {"decode": decode_one, "judge": judge_one}[what]
    atheris.instrument_all()
    atheris.Setup(sys.argv, lambda data: (one(data), None)[1])
    atheris.Fuzz()


def random_inputs(seed, size):
    """Yield inputs without an end."""
    chance = random.Random(seed)
    while True:
        yield chance.randbytes(chance.randrange(1, size))


if __name__ == "__main__":
    main()
