"""Rules as a judge takes them: a year of beacons costs no more memory than two weeks of them."""

from dataclasses import replace

from maxgreen.ledger import rulings
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.rulings import Beacons
from maxgreen.protocol.backend import sign_beacon
from simulator.lab import NETWORK, beacon
from tests.ingest.desks import BACKEND


def test_of_many_beacons_a_few_are_remembered_and_each_is_found(engine, monkeypatch):
    monkeypatch.setattr(rulings, "_BEACONS", 3)
    made = {number: replace(beacon(), number=number) for number in range(1, 11)}
    with engine.begin() as connection:
        for one in made.values():
            Book(connection).add_beacon(one, sign_beacon(one, BACKEND, NETWORK))
    beacons = Beacons(reader(engine))
    for number in [*made, *reversed(made), 5, 5]:
        beacons.fetch([number])
        assert beacons[number].number == number
        assert len(beacons) <= 3
    beacons.fetch([2, 11])
    assert beacons.get(11) is None
    assert beacons[2].number == 2
    assert beacons[9].number == 9  # that nobody fetched
