"""A chain judged in memory, batch by batch: for audits, closes and everything that has the whole chain at hand."""

from maxgreen.protocol.batch import SignedBatch
from maxgreen.protocol.reasons import Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import DeviceRecord, Rules
from maxgreen.verify.shares import ShareCheck, check_shares
from maxgreen.verify.verdict import Judgement, Waiting, date, dated, take


class Replay:
    """Holds the state of one device's chain, and its batches that wait for a date."""

    def __init__(self, state: ChainState, record: DeviceRecord, rules: Rules) -> None:
        self.state = state
        self._record = record
        self._rules = rules
        self._undated: list[Waiting] = []

    def take(
        self,
        signed: SignedBatch,
        received_ms: int,
        *,
        skipped_to: bool = False,
        predecessor: ChainState | None = None,
        shares: ShareCheck = check_shares,
    ) -> list[Judgement]:
        """Give the next batch its place: return its judgement, then those of the batches that it gave a date.

        `predecessor` is the chain of the device that a seq 0 with field 14 succeeds.
        """
        before = self.state.enter(signed.batch.boot)
        if before.undated_from is None:
            self._undated.clear()
        self.state, own = take(
            self.state,
            signed,
            received_ms,
            self._record,
            self._rules,
            skipped_to=skipped_to,
            predecessor=predecessor,
            shares=shares,
        )
        judgements = [own]
        if own.verdict is Verdict.HELD and own.t0_ms is None:
            self._undated.append(Waiting(signed, received_ms, before, skipped_to))
        if self.state.dating:
            for waiting in self._undated:
                self.state, judgement = date(self.state, waiting, self._record, self._rules)
                judgements.append(judgement)
            self._undated.clear()
            self.state = dated(self.state)
        return judgements
