"""The whole ledger within one transaction: every subject's rows, and what is written of them but for judging."""

from maxgreen.ledger.batches import Batches
from maxgreen.ledger.devices import Devices
from maxgreen.ledger.evidence import RejectedMessages
from maxgreen.ledger.line_days import LineDays
from maxgreen.ledger.periods import Periods
from maxgreen.ledger.rules import RuleBook


class Book(Batches, Devices, RejectedMessages, RuleBook, LineDays, Periods):
    """Reads the ledger within one transaction, and writes what is not judged."""
