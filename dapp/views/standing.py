"""Whether the DAO lets a system count, as the chain says it now: the ledger's copy may be older."""

from typing import Any, Final

from dapp.world import BLOCK_S, World
from maxgreen.chain.client import LOG_SPAN

_STATUSES: Final = ("none", "active", "suspended", "revoked")
_SPANS: Final = 20  # how far back its words are looked for


def standing(world: World, system: int) -> dict[str, Any]:
    """Return a system's status, since when (unix s), and what the DAO said when it took it from the active ones."""

    def fetch() -> dict[str, Any]:
        functions: Any = world.deployment.registry.functions
        history = world.deployment.chain.call(functions.historyOf(system))
        if not history:
            return {"status": "none", "since_s": 0, "text": ""}
        since_s, status = history[-1]
        text = _words(world, system, since_s) if _STATUSES[status] != "active" else ""
        return {"status": _STATUSES[status], "since_s": since_s, "text": text}

    return world.memory.get(("standing", system), BLOCK_S, fetch)


def _words(world: World, system: int, since_s: int) -> str:
    """Return the newest words with which a system's status was set; nothing where they are too long ago."""

    def fetch() -> str:
        chain, event = world.deployment.chain, world.deployment.registry.events.StatusChanged()
        newest = chain.newest_block().number
        for last in range(newest, max(-1, newest - _SPANS * LOG_SPAN), -LOG_SPAN):
            found = chain.events(event, max(0, last - LOG_SPAN + 1), last, tokenId=system)
            if found:
                return str(found[-1]["args"]["reason"])
        return ""

    return world.lasting.get(("words", system, since_s), 3_600, fetch)
