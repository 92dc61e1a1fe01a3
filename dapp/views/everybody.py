"""What everybody may know."""

from typing import Any

from dapp.views import money
from dapp.world import SOON_S, World


def totals(world: World) -> dict[str, Any]:
    """Return what everybody may know: how many systems, what was paid, tokens against storage, statements' roots."""
    systems = world.systems
    paid = world.memory.get("paid", SOON_S, world.contract.total_paid_mws)
    return {
        "network": world.deployment.network,
        "miners": sum(known.system["kind"] == "miner" for known in systems.values()),
        "nodes": sum(known.system["kind"] != "miner" for known in systems.values()),
        "lines": len(world.ends),
        "paid_mws": str(paid),
        "storage": [money.room(world, node) for node in world.storing if node in systems],
        "periods": [
            {
                "period": one["period"], "lines": len(one["run"]["lines"]), "root": one["run"]["root"],
                "total_mws": one["run"]["total_mws"],
            }
            for one in money.closed(world)
        ],
    }  # fmt: skip
