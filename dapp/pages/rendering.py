"""How pages are made: templates, words, errors, files."""

from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from jinja2 import Environment, FunctionLoader, select_autoescape

from dapp import words
from dapp.views import money
from dapp.visit import Visit, came_from
from maxgreen.chain.deployment import FIELDS
from settlement.packs import write_pack_of

# What scripts say (dapp/web/src/wallet.js); English is in them.
SCRIPT_TEXTS: Final = (
    "Still no block has it: {hash}. Look in the wallet whether it was replaced.",
    "Back",
    "Browser wallet",
    "Done.",
    "Go on",
    "In block {block}.",
    "It failed in block {block}: {why}",
    "Once more",
    "Sign",
    "Sent: {hash}. It waits for a block.",
    "The wallet asks you.",
    "The wallet is asked to change its network.",
    "The wallet waits for you: open it.",
    "There is no wallet in this browser.",
    "These bytes are not what they seem; nothing is signed.",
    "This is no call to a contract that these pages know; nothing is signed.",
    "You declined in the wallet.",
    "You signed in as {account}, and the wallet is at {other}: choose the account in the wallet.",
    "the chain does not say why",
)
TURNS: Final = {
    "opening": "opens when both agents have sent a reading; the operator sees to it",
    "trouble": "its evidence does not hold together; the operator looks at it",
    "hold": "held back by the DAO",
    "vote": "the DAO votes on it",
    "claim": "approved: you can claim it",
    "rejected": "the DAO rejected the order; the operator closes the period again",
    "order": "waits for the next order",
    "room": "waits for room in the node's battery",
    "period": "waits for the end of its first period",
    "nothing": "all of it is paid",
}


_NUMBERS: Final = (words.energy, words.power, words.tokens, words.worth, words.percent)
STATES: Final = {  # of a statement
    **TURNS,
    "paid": "paid",
    "nothing": "nothing to pay",
    "later": "it is in the statement of a later period",
    "forfeited": "the DAO took the rest back",
}


@lru_cache(maxsize=len(words.LANGUAGES))
def _environment(language: str) -> Environment:
    said = words.said(language)
    pages = Environment(
        loader=FunctionLoader(lambda name: files("dapp").joinpath("templates", name).read_text()),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals.update(
        _=lambda text, /, **values: (said.get(text, text)).format(**values) if values else said.get(text, text),
        **{one.__name__: words.with_commas(one, language) for one in _NUMBERS},
        coin=lambda name: words.coin(name, language),
        languages=words.LANGUAGES, turns=TURNS, states=STATES,
        texts={text: said[text] for text in SCRIPT_TEXTS if text in said},
    )  # fmt: skip
    return pages


def _contracts(visit: Visit) -> dict[str, str]:
    """Return where the contracts of one kind are; of energy tokens and pools each node has its own."""
    return {name: visit.world.deployment.address_of(name) for name in FIELDS if name != "EnergyToken"}


def render(visit: Visit, name: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page for a visitor."""
    page = _environment(visit.language).get_template(name)
    shown = {
        "who": visit.who, "language": visit.language, "zone": visit.zone, "now_ms": visit.world.now_ms,
        "moment": lambda t_ms: words.moment(t_ms, visit.zone), "ago": lambda t_ms: words.ago(t_ms, visit.world.now_ms),
        "named": visit.named, "in_words": visit.in_words, "trial": visit.world.trial, "missing": visit.missing,
        "contracts": _contracts(visit),
        "network": visit.world.deployment.network, "path": visit.path,
    }  # fmt: skip
    body = page.render(**shown, **values, status=status)
    return HTMLResponse(body, status, {"Cache-Control": "private, no-store"})


def error_page(request: Request, status: int, detail: str) -> Response:
    """Return an error for people, as the visitors that they are."""
    try:
        visit = Visit(request)
        _ = visit.who
    except Exception:  # noqa: BLE001 - it may be what the error is about
        return refusal_page(request, status, detail)
    back = came_from(request, "/") if request.method == "POST" else "/"
    return render(visit, "error.html", status, detail=words.translated(detail, visit.language), back=back)


def refusal_page(request: Request, status: int, detail: str) -> Response:
    """Return an error for people; nothing is asked who they are."""
    language = words.language_of(request.cookies, request.headers)
    page = _environment(language).get_template("error.html")
    body = page.render(
        who=None, status=status, detail=words.translated(detail, language), language=language, zone="UTC", path="/"
    )
    return HTMLResponse(body, status)


def pack(visit: Visit, period: str, line: str | None) -> Response:
    """Return the evidence of a period, of one line or all, as a file."""
    run, order = money.run_of(visit.world, period)
    folder = TemporaryDirectory(prefix="maxgreen-dapp-")
    path = Path(folder.name) / "pack.zip"
    write_pack_of(visit.world.store, run, order, path, line)

    def parts() -> Iterator[bytes]:
        with folder, path.open("rb") as file:
            while data := file.read(1 << 16):
                yield data

    name = f"evidence-{period}{f'-{line[:8]}' if line else ''}.zip"
    headers = {"Content-Disposition": f"attachment; filename={name}", "Content-Length": str(path.stat().st_size)}
    return StreamingResponse(parts(), media_type="application/zip", headers=headers)
