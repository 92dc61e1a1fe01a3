"""What an agent is made of; the composition roots put real or virtual parts here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.board.base import Board, NoBoard
from edge_agent.governor import BudgetSettings
from edge_agent.source import Source
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from edge_agent.work import Worker
from maxgreen.clock import Clock, SystemClock
from maxgreen.protocol.batch import Birth
from maxgreen.protocol.keys import Signer


@dataclass(frozen=True, slots=True)
class Retired:
    """An earlier key's spool, and the uplink that delivers what is left of it."""

    spool: Spool
    uplink: Uplink


@dataclass(frozen=True, slots=True)
class AgentParts:
    """The parts of one device."""

    source: Source
    signer: Signer
    spool: Spool
    uplink: Uplink
    worker: Worker | None
    birth: Birth
    network: str
    interval_ms: int
    seal_ms: int
    home_assistant: bool = False
    clock: Clock = field(default_factory=SystemClock)
    board: Board = field(default_factory=NoBoard)
    line_channel: int = 1
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    most_spool_bytes: int = 2**40
    retired: Sequence[Retired] = ()
    undeliverable: Sequence[str] = ()  # earlier keys' spools that can't be read, and why
    finish_key: bool = False  # a rotation is confirmed: this key's last batch is due
