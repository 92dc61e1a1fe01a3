"""The statement as a page that its owner reads."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, select_autoescape

from maxgreen.protocol.reasons import Reason

_RELEASES: Final = {
    Reason.INCOMPLETE: "batches are missing; they count when the device has sent them",
    Reason.OFFLINE_WINDOW: "no proof of work arrived for these ten minutes; the DAO can release them",
    Reason.NOT_GENERATED: "more was sent than generated that day; check both meters' calibration",
    Reason.OVER_CAPACITY: "more than the registered panel can make; register the panel's real peak",
    Reason.AT_NIGHT: "energy at night; check the registered place",
    Reason.STUCK_SENSOR: "the sensor repeated one reading; check it",
    Reason.RECEIVED_EXCEEDS_SENT: "more was received than sent; calibrate both meters, or ask the DAO",
    Reason.LOSS_EXCEEDS_LIMIT: "more was lost than the line explains; check the line, or ask the DAO",
    Reason.UNSYNCHRONISED: "the clock was not set; it counts when the boot gets a date",
    Reason.SUSPENDED: "the device is suspended; the DAO can reinstate it",
    Reason.BATCH_NOT_ACCEPTED: "a batch was rejected or is held; the device's page says why",
    Reason.UNATTESTED: "measured after the period's last register reading; it counts in the next order",
}


def statement_page(statement: bytes) -> str:
    """Return the HTML page of a statement.json."""
    pages = Environment(
        loader=FunctionLoader(lambda name: files("settlement").joinpath("templates", name).read_text()),
        autoescape=select_autoescape(default=True),
    )
    value = json.loads(statement)
    lines = [_readable(line) for line in value["lines"]]
    return pages.get_template("statement.html").render(period=value["period"], lines=lines)


def _readable(line: Mapping[str, Any]) -> dict[str, Any]:
    sent, received = int(line["sent_mws"]), int(line["received_mws"])
    unpaid = [
        {"kwh": kwh(energy), "why": _RELEASES.get(Reason(int(reason)), Reason(int(reason)).label)}
        for group in ("held", "disputed")
        for reason, energy in line[group].items()
    ]
    return {
        **line,
        "sent_kwh": kwh(line["sent_mws"]),
        "received_kwh": kwh(line["received_mws"]),
        "loss_kwh": kwh(line["loss_mws"]),
        "expected_kwh": kwh(line["expected_loss_mws"]),
        "payable_kwh": kwh(line["payable_mws"]),
        "tokens": f"{int(line['mint_wei']) / 1e18:.9f}",
        "arrived_percent": round(100 * received / sent, 2) if sent else 0,
        "unpaid": unpaid,
    }


def kwh(energy_mws: str | int) -> str:
    """Return mW·s as kWh with six decimals."""
    return f"{int(energy_mws) / 3.6e9:.6f}"
