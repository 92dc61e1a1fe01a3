"""Limits and decisions in the ledger."""

import json
from dataclasses import asdict
from typing import Final

from sqlalchemy import case, delete, insert, select, update

from maxgreen.ledger.desk import Due
from maxgreen.ledger.messages import Messages, beacon_of
from maxgreen.ledger.schema import RULES, chains, counters, decisions, limits
from maxgreen.verify.rules import Action, Decision, Limits, Rules

_RULES_CHANGE: Final = select(counters.c.value).where(counters.c.name == RULES)


class RuleBook(Messages):
    """What the verifier judges by."""

    def add_decision(self, decision: Decision) -> None:
        """Record a decision of the operator or the DAO; the worker lets the device's chain go on by it."""
        self._db.execute(insert(decisions).values(**{**asdict(decision), "action": decision.action.value}))
        # another version: whoever judges this chain by the rules of before reads it again
        due = Due.CONTINUED if decision.action is Action.CONTINUE else Due.DECIDED
        decided = {"due": case((chains.c.due > due, chains.c.due), else_=int(due)), "version": chains.c.version + 1}
        self._db.execute(update(chains).where(chains.c.device == decision.device).values(decided))
        self._rules_changed()  # last, as a writer does: chains are locked before counters

    def rules(self, network: str) -> Rules:
        """Return limits, every beacon and decisions as the verifier takes them."""
        found = {number: beacon_of(message) for number, message in self.all_beacons().items()}
        return Rules(network, limits=self.limits(), beacons=found, decisions=self.decisions())

    def decisions(self) -> list[Decision]:
        """Return every recorded decision, oldest first."""
        rows = self._db.execute(select(decisions).order_by(decisions.c.at_ms, decisions.c.id)).mappings()
        return [
            Decision(
                bytes(row["device"]),
                row["from_seq"],
                row["to_seq"],
                Action(row["action"]),
                row["reason"],
                row["who"],
                row["at_ms"],
                row["text"],
            )
            for row in rows
        ]

    def limits(self) -> list[tuple[int, Limits]]:
        """Return the limits by time; the protocol's defaults when none were set."""
        rows = self._db.execute(select(limits).order_by(limits.c.from_ms))
        return [(int(from_ms), Limits.from_json(json.loads(value))) for from_ms, value in rows] or [(0, Limits())]

    def set_limits(self, from_ms: int, value: Limits) -> None:
        """Let limits hold from a time on; nothing is written when they hold already."""
        if self.limits()[-1][1] == value and self._db.execute(select(limits.c.from_ms)).first():
            return
        self._db.execute(delete(limits).where(limits.c.from_ms == from_ms))
        self._db.execute(insert(limits).values(from_ms=from_ms, value=json.dumps(asdict(value))))
        self._rules_changed()

    def rules_change(self) -> int:
        """Return a number that rises with every change of limits or decisions."""
        return int(self._db.execute(_RULES_CHANGE).scalar() or 0)

    def _rules_changed(self) -> None:
        self._db.execute(update(counters).where(counters.c.name == RULES).values(value=counters.c.value + 1))
