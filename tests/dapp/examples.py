"""Answers of the API as its description shows them: `python -m tests.dapp.examples` writes dapp/examples.json."""

import json
import tempfile
from pathlib import Path

from dapp import api
from maxgreen.chain.market import Exchange
from maxgreen.chain.registry import apply_for
from simulator.lab import Lab
from tests.chain.world import on_anvil
from tests.conftest import ROOT, running_anvil
from tests.dapp.conftest import MORNING, Site
from tests.dapp.test_access import ALLOWED, ask, place
from tests.e2e.story import Story, tell

TARGET = ROOT / "dapp/examples.json"
FEW = 2  # of a list, and of more in a row
ORDER = ("owner", "member", "operator", "nobody", "stranger")
NONE = {"GET /api/v1/periods/{period}/run", "GET /api/v1/openapi.json"}


def described():
    """Yield the routes whose answers have an example."""
    for route in api.router.routes:
        for method in route.methods:
            if (name := f"{method} {route.path}") not in NONE:
                yield name


def shortened(value):
    if isinstance(value, list):
        return [shortened(one) for one in value[:FEW]]
    if isinstance(value, dict):
        return {name: shortened(one) for name, one in value.items()}
    return value


def answer_to(site, name):
    who = next(one for one in ORDER if one in ALLOWED[name])
    answer = ask(site, who, name)
    assert answer.status_code in {200, 201}, (name, answer.text)
    return answer.json()


def main():
    with running_anvil(*MORNING) as url, tempfile.TemporaryDirectory() as folder:
        story = Story(on_anvil(url), Path(folder))
        tell(story)
        newcomer = Lab(secret=17, network=story.network)
        apply_for(story.deployment, story.world.accounts[7], newcomer.signer, story.specs[1])
        exchange = Exchange(story.deployment)
        exchange.request_storage(story.owners[1], 1, 3, 3_600_000_000, 86_400)
        site = Site(story)
        place(site)
        found = {name: shortened(answer_to(site, name)) for name in sorted(described())}
    TARGET.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
