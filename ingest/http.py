"""Pages for people, JSON for scripts, health and metrics."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FunctionLoader, select_autoescape
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Engine, select

from ingest.commands import command_json
from ingest.metrics import Metrics
from maxgreen.clock import Clock
from maxgreen.ledger.book import Book
from maxgreen.ledger.registry import KnownDevice
from maxgreen.ledger.schema import periods
from maxgreen.protocol.batch import channels_of
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.chain import ChainState

_RECENT: Final = 50
_COMMANDS: Final = 10
_EXPLANATIONS: Final = {
    Reason.GAP_BEFORE: "waits for an earlier batch that has not arrived yet",
    Reason.CLOCK_UNSYNCHRONISED: "waits until the device's clock is set and gives it a date",
    Reason.SUSPENDED_DEVICE: "the device is suspended; the DAO can reinstate it",
    Reason.TIME_OVERLAP: "its times overlap an earlier batch",
    Reason.FUTURE_TIME: "its times lie in the future; check the device's clock",
    Reason.REGISTER_MISMATCH: "its registers do not follow from its samples",
    Reason.BAD_WORK: "a share misses its target",
    Reason.BAD_ATTESTATION: "a register attestation is wrong",
    Reason.BIRTH_MISSING: "it names a channel that the device has not described",
}


def make_app(engine: Engine, metrics: Metrics, ready: Callable[[], str | None], clock: Clock) -> FastAPI:
    """Return the web application; `engine` is one for readers, `ready` says what is missing, or None."""
    app = FastAPI(title="MaxCoin Green Energy ingest", docs_url="/docs", redoc_url=None)
    pages = Environment(
        loader=FunctionLoader(lambda name: files("ingest").joinpath("templates", name).read_text()),
        autoescape=select_autoescape(default=True),
    )

    @app.get("/health/live")
    def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health/ready")
    def is_ready(response: Response) -> dict[str, str]:
        missing = ready()
        if missing:
            response.status_code = 503
        return {"status": missing or "ok"}

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/api/devices")
    def devices() -> list[dict[str, Any]]:
        with engine.begin() as connection:
            return _devices(Book(connection))

    @app.get("/api/devices/{device}/batches")
    def batches(device: str, limit: Annotated[int, Query(ge=1, le=1_000)] = _RECENT) -> list[dict[str, Any]]:
        with engine.begin() as connection:
            book = Book(connection)
            known = _find(book, device)
            return [_batch_json(row) for row in book.recent_batches(known.record.device, limit)]

    @app.get("/api/devices/{device}/commands")
    def commands(device: str, limit: Annotated[int, Query(ge=1, le=1_000)] = _RECENT) -> list[dict[str, Any]]:
        with engine.begin() as connection:
            book = Book(connection)
            rows = book.all_commands(limit, device=_find(book, device).record.device)
        return [command_json(row, clock.now_ms()) for row in rows]

    @app.get("/api/verdicts")
    def verdicts() -> list[dict[str, Any]]:
        with engine.begin() as connection:
            counts = Book(connection).verdict_counts()
        return [
            {"verdict": verdict, "reason": Reason(reason).label, "count": count}
            for (verdict, reason), count in sorted(counts.items())
        ]

    @app.get("/api/evidence")
    def rejected() -> list[dict[str, Any]]:
        with engine.begin() as connection:
            return [
                {
                    "reason": Reason(row.reason).label,
                    "text": row.text,
                    "topic": row.topic,
                    "received": _iso(row.received_ms),
                }
                for row in Book(connection).all_evidence()
            ]

    @app.get("/api/statements")
    def statements() -> list[dict[str, Any]]:
        with engine.begin() as connection:
            rows = connection.execute(select(periods).order_by(periods.c.until_s))
            return [{"period": r.period, "until": r.until_s, "statement": json.loads(r.document)} for r in rows]

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        with engine.begin() as connection:
            known = _devices(Book(connection))
        return pages.get_template("index.html").render(devices=known)

    @app.get("/devices/{device}", response_class=HTMLResponse)
    def device_page(device: str) -> str:
        with engine.begin() as connection:
            book = Book(connection)
            known = _find(book, device)
            rows = [_batch_json(row) for row in book.recent_batches(known.record.device, _RECENT)]
            state = book.state(known.record.device)
            given = book.all_commands(_COMMANDS, device=known.record.device)
        told = [_command_page(command_json(row, clock.now_ms())) for row in given]
        return pages.get_template("device.html").render(device=device_json(known, state), batches=rows, commands=told)

    return app


def _devices(book: Book) -> list[dict[str, Any]]:
    states = book.states()
    return [device_json(known, states.get(known.record.device)) for known in book.all_devices()]


def device_json(known: KnownDevice, chain: ChainState | None) -> dict[str, Any]:
    """Return what people want to know of a device."""
    roles = ["generation", "sent", "received", "delivered", "taken out"]
    channels = [chain.channels[n] for n in sorted(chain.channels)] if chain else []
    return {
        "device": known.record.device.hex(),
        "kind": known.system["kind"],
        "token": known.token,
        "owner": known.owner,
        "status": known.record.statuses[-1][1],
        "batches": chain.next_seq if chain else 0,
        "halted": bool(chain and chain.halted),
        "last_measured": _iso(chain.wall_ms) if chain and chain.wall_ms >= 0 else None,
        "channels": [
            {
                "channel": c.channel,
                "role": roles[c.role],
                "energy_kwh": c.register_mws / 3.6e9,
                "power_w": c.last.power_pw(0) / 1e12 if c.last else None,
                "not_metered_s": c.gap_ms / 1000,
            }
            for c in channels
        ],
    }


def _batch_json(row: Any) -> dict[str, Any]:
    reason = Reason(row.reason)
    channels = channels_of(bytes(row.message)) if row.message else ()  # else it was pruned
    return {
        "seq": row.seq,
        "verdict": row.verdict,
        "reason": reason.label,
        "explanation": _EXPLANATIONS.get(reason, ""),
        "remark": Reason(row.remark).label if row.remark else "",
        "measured": _iso(row.t0_ms) if row.t0_ms is not None else None,
        "received": _iso(row.received_ms),
        "shares": row.shares,
        "samples": sum(channel.count for channel in channels),
        "sha256": bytes(row.digest).hex(),
    }


def _command_page(command: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "issued": _iso(command["issued_ms"]),
        "kind": command["kind"].replace("_", " "),
        "who": command["who"],
        "fate": command["fate"],
        "refusal": (command["refusal"] or "").replace("_", " "),
    }


def _find(book: Book, device: str) -> KnownDevice:
    try:
        known = book.device(bytes.fromhex(device))
    except ValueError:
        known = None
    if known is None:
        raise HTTPException(404, f"no device {device!r}; /api/devices lists them")
    return known


def _iso(t_ms: int) -> str:
    try:
        return datetime.fromtimestamp(t_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return f"{t_ms} ms"
