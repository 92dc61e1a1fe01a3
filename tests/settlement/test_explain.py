"""Where each watt-second went, and the page that says it."""

import csv
import io
import zlib

import pytest

from maxgreen.errors import UsageError
from maxgreen.protocol.reasons import RELEASABLE, Reason
from settlement.explain import WHY, explain
from settlement.page import signed_parts, statement_csv, statement_page, statement_pdf
from settlement.statement import SIGNATURE, STATEMENT, read_windows
from simulator.lab import NETWORK
from tests.settlement.test_statement import PERIOD
from tests.settlement.test_thieves import CURRENT_UA, Thieves


def told(pair):
    """Return a line's statement and windows, as its evidence has them, and what they say of its energy."""
    result = pair.made().result()
    read = read_windows(result.entries)
    assert explain(PERIOD, result.statement, read) == explain(PERIOD, result.statement, result.windows.windows)
    return (result.statement, read), explain(PERIOD, result.statement, read)


def story():
    pair = Thieves()
    for k in range(12):
        kind = {3: "over", 5: "skim", 7: "offline", 9: "silent"}.get(k)
        if kind == "silent":
            pair.node.reboot(bytes([9] * 16), wall_ms=pair.node.boot_ms + pair.node.wall_offset_ms + 600_000)
            batch = pair.miner.batch(
                [(18_000_000 + j, CURRENT_UA) for j in range(20)], work=pair.miner.work(pair.beacon)
            )
            pair.messages[pair.miner.device].append(pair.miner.sign(batch))
            continue
        pair.both(
            sent=2_900_000 if kind == "over" else CURRENT_UA,
            skim=0.4 if kind == "skim" else 0.0,
            working=kind != "offline",
            attested=k == 11,
        )
    return pair


def test_the_parts_are_all_that_was_sent_in_words_and_in_pictures():
    line, explained = told(story())
    assert sum(part.energy_mws for part in explained.parts) == explained.sent_mws > 0
    names = {part.name for part in explained.parts if part.energy_mws}
    assert {"counted", "held (43 over_capacity)", "disputed (47 loss_exceeds_limit)", "held (55 unmetered)"} <= names
    of_slots = sum(s.counted_mws + s.lost_mws + s.held_mws + s.disputed_mws for s in explained.slots)
    assert of_slots == explained.sent_mws
    assert len(explained.slots) == 24
    assert explained.dark_received_s == 600 - 30
    why = explained.why()
    assert len(why) <= 10
    assert why[-2] == f"{explained.counted_windows} of 12 windows of ten minutes count"
    page = statement_page(PERIOD, NETWORK, [line])
    assert all(sentence in page for sentence in why[-2:])
    assert page.count("<g>") == 24
    [header, row] = csv.reader(io.StringIO(statement_csv(PERIOD, [line[0]])))
    assert dict(zip(header, row, strict=True))["payable_mws"] == str(explained.payable_mws)


def test_a_month_without_energy_looks_like_what_it_is():
    line, explained = told(Thieves())
    assert explained.sent_mws == 0
    assert sum(part.energy_mws for part in explained.parts) == 0
    assert "Nothing was measured on this line" in statement_page(PERIOD, NETWORK, [line])
    assert "0.000000 kWh to pay" in statement_page(PERIOD, NETWORK, [line])


def test_the_page_names_order_and_owner_and_prints(tmp_path):
    line, _ = told(story())
    order = {"order": 7, "contracts": {"settlement": "0x" + "ab" * 20}, "transactions": {"post": "0x" + "cd" * 32}}
    signed = signed_parts({line[0]["line"]: {STATEMENT: b'{"signed": 1}', SIGNATURE: b"of the statement"}})
    page = statement_page(PERIOD, NETWORK, [line], order, {"1": "0x" + "ef" * 20})
    for said in ("Order 7", "0x" + "ab" * 20, "posted by transaction", "0x" + "cd" * 32, "Owner", "0x" + "ef" * 20):
        assert said in page
    try:
        made = statement_pdf(page, signed)
    except UsageError as error:
        pytest.skip(str(error))
    assert made.startswith(b"%PDF-")
    assert len(made) > 5_000
    streams = [part.partition(b"endstream")[0].strip(b"\r\n") for part in made.split(b"stream\n")[1::2]]
    found = {zlib.decompress(stream) for stream in streams if stream[:1] == b"x"} | set(streams)
    assert set(signed.values()) <= found
    for name in signed:
        assert any(name.encode() in part for part in found)


def test_what_is_all_held_says_so():
    pair = Thieves()
    for k in range(3):
        pair.both(skim=0.9, attested=k == 2)
    line, explained = told(pair)
    assert explained.counted_windows == 0
    assert "all 3 windows with measurements are held or disputed" in statement_page(PERIOD, NETWORK, [line])


@pytest.mark.parametrize("reason", [reason for reason in Reason if 40 <= reason < 60])
def test_every_reason_says_what_would_release_it(reason):
    assert WHY[reason]
    assert (reason in RELEASABLE) >= (Reason(reason) in {Reason.RECEIVED_EXCEEDS_SENT, Reason.LOSS_EXCEEDS_LIMIT})
