"""The statement as a page that its owner reads, and as lines of a CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, select_autoescape

from maxgreen.errors import UsageError
from maxgreen.units import kwh
from settlement.explain import Slot, explain
from settlement.inputs import entry
from settlement.periods import period_bounds
from settlement.statement import SIGNATURE, STATEMENT
from settlement.windows import Window

Line = tuple[Mapping[str, Any], Sequence[Window]]  # statement and windows

_HEIGHT: Final = 160  # of the picture, px
_KINDS: Final = ("counted_mws", "lost_mws", "held_mws", "disputed_mws")
_COLORS: Final = {"counted": "#2a8a3e", "lost": "#b07a00", "held": "#77808c", "disputed": "#b3261e"}
_COLUMNS: Final = (
    "line", "miner", "node", "sent_mws", "received_mws", "loss_mws", "expected_loss_mws", "error_mws",
    "counted_windows", "online_windows", "hashes", "payable_total_mws", "paid_before_mws", "payable_mws", "mint_wei",
)  # fmt: skip


def statement_page(
    period: str,
    network: str,
    lines: Sequence[Line],
    order: Mapping[str, Any] | None = None,
    owners: Mapping[str, str] = MappingProxyType({}),
    node_share_ppm: int | None = None,
) -> str:
    """Return the HTML page of a period's statements; `order`: order.json's values, `owners`: addresses by token.

    `node_share_ppm`: what of the tokens the node's owner gets; left out where it is None.
    """
    pages = Environment(
        loader=FunctionLoader(lambda name: files("settlement").joinpath("templates", name).read_text()),
        autoescape=select_autoescape(default=True),
    )
    return pages.get_template("statement.html").render(
        period=period,
        until=_date(period_bounds(period)[1]),
        network=network,
        order=order,
        colors=_COLORS,
        lines=[
            {
                **_readable(period, one, windows),
                "owner": owners.get(str(one["miner"])),
                "split": _split(int(one["mint_wei"]), node_share_ppm),
            }
            for one, windows in lines
        ],
    )


def signed_parts(lines: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """Return the statements of lines as they were signed, and the signatures, as files; PackError when one is missing.

    `lines`: entries by the line's id in hex.
    """
    found: dict[str, bytes] = {}
    for line, entries in lines.items():
        name = f"statement-{line[:16]}"
        found |= {f"{name}.json": entry(entries, STATEMENT), f"{name}.cose": entry(entries, SIGNATURE)}
    return found


def statement_pdf(page: str, signed: Mapping[str, bytes]) -> bytes:
    """Return the same as PDF; `signed`: files that go along, the statements as they were signed.

    UsageError when WeasyPrint, or what it needs of the system, is not there.
    """
    try:
        from weasyprint import HTML, Attachment  # noqa: PLC0415 - an extra
    except (ImportError, OSError) as error:
        raise UsageError(
            "a PDF needs WeasyPrint: install maxgreen[pdf], and its libraries (apt-get install libpangoft2-1.0-0)"
        ) from error
    attachments = [Attachment(string=data, name=name, relationship="Source") for name, data in signed.items()]
    made: bytes = HTML(string=page).write_pdf(attachments=attachments)
    return made


def statement_csv(period: str, statements: Sequence[Mapping[str, Any]]) -> str:
    """Return statements as CSV: a line of the book in each row, energies in mW·s."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("period", *_COLUMNS))
    for statement in statements:
        writer.writerow((period, *(statement[name] for name in _COLUMNS)))
    return text.getvalue()


def _readable(period: str, line: Mapping[str, Any], windows: Sequence[Window]) -> dict[str, Any]:
    explained = explain(period, line, windows)
    sent = int(line["sent_mws"])
    return {
        **line,
        "sent_kwh": kwh(line["sent_mws"]),
        "received_kwh": kwh(line["received_mws"]),
        "loss_kwh": kwh(line["loss_mws"]),
        "expected_kwh": kwh(line["expected_loss_mws"]),
        "payable_kwh": kwh(line["payable_mws"]),
        "total_kwh": kwh(line["payable_total_mws"]),
        "tokens": f"{int(line['mint_wei']) / 1e18:.9f}",
        "arrived_percent": round(100 * int(line["received_mws"]) / sent, 2) if sent else 0,
        "windows": explained.windows,
        "why": explained.why(),
        "bars": _bars(explained.slots),
        "most_kwh": kwh(max((_height(slot) for slot in explained.slots), default=0)),
        "decisions": [{**d, "at": _date(d["at_ms"] // 1000)} for d in line["decisions"]],
    }


def _split(mint_wei: int, node_share_ppm: int | None) -> dict[str, str] | None:
    """Return what of the tokens each end's owner gets."""
    if node_share_ppm is None:
        return None
    to_node = mint_wei * node_share_ppm // 10**6
    return {
        "miner": f"{(mint_wei - to_node) / 1e18:.9f}", "node": f"{to_node / 1e18:.9f}",
        "percent": f"{node_share_ppm / 10_000:g}",
    }  # fmt: skip


def _bars(slots: Sequence[Slot]) -> list[dict[str, Any]]:
    """Return a bar for each slot: its parts from the bottom up, px."""
    most = max(map(_height, slots), default=0) or 1
    found = []
    for number, slot in enumerate(slots):
        top, parts = float(_HEIGHT), []
        for kind in _KINDS:
            height = _HEIGHT * getattr(slot, kind) / most
            top -= height
            parts.append({"kind": kind.removesuffix("_mws"), "y": round(top, 2), "height": round(height, 2)})
        said = ", ".join(f"{kind.removesuffix('_mws')} {kwh(getattr(slot, kind))}" for kind in _KINDS)
        found.append({"x": number, "parts": parts, "title": f"{_date(slot.begin_s)}: {said} kWh"})
    return found


def _height(slot: Slot) -> int:
    return sum(getattr(slot, kind) for kind in _KINDS)


def _date(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
