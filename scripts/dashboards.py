"""Makes `grafana/dashboards/*.json` with Grafana's Foundation SDK. `--check` names those that are not made so.

Energy comes from the view (InfluxDB, by InfluxQL: docs/operator.md says what is in it), the services' own state from
Prometheus. Times are UTC, so that "today" and "this month" are the days and months that settlement counts.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, stat, table, timeseries
from grafana_foundation_sdk.builders import prometheus as prometheus_builder
from grafana_foundation_sdk.cog import builder as cog_builder
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units

FOLDER: Final = Path(__file__).parent.parent / "grafana/dashboards"
VIEW: Final = model.DataSourceRef("influxdb", "maxgreen")
SERVICES: Final = model.DataSourceRef("prometheus", "maxgreen-prometheus")
_WIDTH: Final = 24
_SOURCES: Final = "role =~ /^(generation|sent)$/"
_MINUTES: Final = "1m"

Panel = stat.Panel | timeseries.Panel | table.Panel | bargauge.Panel


class InfluxQuery(variants.Dataquery):
    """A query in InfluxQL; `as_table` for tables."""

    def __init__(self, text: str, alias: str = "", *, as_table: bool = False, ref: str = "A") -> None:
        self._json = {
            "refId": ref, "datasource": VIEW, "rawQuery": True, "query": text, "alias": alias,
            "resultFormat": "table" if as_table else "time_series",
        }  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Return it as Grafana keeps it."""
        return self._json


class Influx(cog_builder.Builder[variants.Dataquery]):
    """Builds an InfluxQuery."""

    def __init__(self, text: str, alias: str = "", *, as_table: bool = False, ref: str = "A") -> None:
        self._query = InfluxQuery(text, alias, as_table=as_table, ref=ref)

    def build(self) -> variants.Dataquery:
        """Return it."""
        return self._query


class InfluxAnnotation(model.AnnotationQuery):
    """Marks on every graph, from a query in InfluxQL."""

    def __init__(self, name: str, colour: str, query: str, text: str, tags: str) -> None:
        super().__init__(name=name, datasource=VIEW, enable=True, icon_color=colour)
        self._more = {"query": query, "textColumn": text, "tagsColumn": tags}

    def to_json(self) -> dict[str, object]:
        """Return it as Grafana keeps it; its data source takes the query from here."""
        return {**super().to_json(), **self._more}


class Annotation(cog_builder.Builder[model.AnnotationQuery]):
    """Builds an InfluxAnnotation."""

    def __init__(self, name: str, colour: str, query: str, text: str = "text", tags: str = "device") -> None:
        self._query = InfluxAnnotation(name, colour, query, text, tags)

    def build(self) -> model.AnnotationQuery:
        """Return it."""
        return self._query


def place(panel: Any, title: str, text: str, width: int, height: int) -> Any:
    """Give a panel its title, description and size."""
    return panel.title(title).description(text).span(width).height(height)


def levels(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Return colours from values on; the first has no value."""
    made = [model.Threshold(value, colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def number(title: str, text: str, query: str, unit: str, *, width: int = 6, since: str = "", alias: str = "") -> Any:
    """Return a panel with numbers; `since` is its own time, 'now/d' for today."""
    panel = place(stat.Panel(), title, text, width, 4).datasource(VIEW).with_target(Influx(query, alias)).unit(unit)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.graph_mode(common_model.BigValueGraphMode.NONE).color_mode(common_model.BigValueColorMode.VALUE)
    panel = panel.thresholds(levels((None, "blue"))).no_value("nothing yet").decimals(2)
    return panel.time_from(since) if since else panel


def curve(title: str, text: str, unit: str, *queries: Influx, width: int = 24, height: int = 9) -> Any:
    """Return a graph over time; gaps stay gaps."""
    panel = place(timeseries.Panel(), title, text, width, height).datasource(VIEW).unit(unit).interval(_MINUTES)
    panel = panel.span_nulls(False).show_points(common_model.VisibilityMode.AUTO).fill_opacity(10).line_width(1)
    panel = panel.legend(common.VizLegendOptions().show_legend(True).placement(common_model.LegendPlacement.BOTTOM))
    for query in queries:
        panel = panel.with_target(query)
    return panel


def bars(title: str, text: str, unit: str, *queries: Influx, interval: str = "1d", width: int = 24) -> Any:
    """Return a graph of bars."""
    panel = curve(title, text, unit, *queries, width=width, height=8).interval(interval)
    return panel.draw_style(common_model.GraphDrawStyle.BARS).fill_opacity(80)


def rows(
    title: str, text: str, query: str, *, width: int = 24, height: int = 9, link: tuple[str, str] = ("", "")
) -> Any:
    """Return a table; `link` is a column and where its cells lead."""
    panel = place(table.Panel(), title, text, width, height).datasource(VIEW)
    panel = panel.with_target(Influx(query, as_table=True)).no_value("nothing yet")
    column, url = link
    if column:
        links = [{"title": "open the page of ${__value.text}", "url": url, "targetBlank": True}]
        panel = panel.override_by_name(column, [model.DynamicConfigValue("links", links)])
    return panel


def service(title: str, text: str, expr: str, unit: str, *, width: int = 6, good: float | None = None) -> Any:
    """Return a panel with a number of Prometheus; `good`: from this value on it is green, below red."""
    panel = place(stat.Panel(), title, text, width, 4).datasource(SERVICES).unit(unit)
    panel = panel.with_target(prometheus_builder.Dataquery().expr(expr).instant().ref_id("A").datasource(SERVICES))
    colours = levels((None, "blue")) if good is None else levels((None, "red"), (good, "green"))
    return panel.thresholds(colours).no_value("no Prometheus")


def running(title: str, text: str, expr: str, unit: str, legend: str, *, width: int = 12) -> Any:
    """Return a graph of Prometheus."""
    query = prometheus_builder.Dataquery().expr(expr).range().legend_format(legend).ref_id("A").datasource(SERVICES)
    return place(timeseries.Panel(), title, text, width, 8).datasource(SERVICES).unit(unit).with_target(query)


def variable(name: str, label: str, query: str, *, every: str = "", regex: str = "") -> Any:
    """Return a list to choose from; `every` is what "All" stands for."""
    made = dashboard.QueryVariable(name).label(label).datasource(VIEW).query(query).regex(regex)
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.NUMERICAL_ASC)
    return made.include_all(True).all_value(every) if every else made


def board(
    uid: str, title: str, text: str, panels: list[Any], variables: tuple[Any, ...] = (), since: str = "now-24h"
) -> Any:
    """Return a dashboard with the links and marks that all of them have."""
    made = (
        dashboard.Dashboard(title).uid(f"maxgreen-{uid}").description(text).tags(["maxgreen"]).readonly()
        .timezone("utc").time(since, "now").refresh("1m").tooltip(model.DashboardCursorSync.CROSSHAIR)
        .timepicker(dashboard.TimePicker().refresh_intervals(["30s", "1m", "5m", "15m"]))
        .link(dashboard.DashboardLink("Dashboards").type(model.DashboardLinkType.DASHBOARDS).tags(["maxgreen"])
              .as_dropdown(True).include_vars(True).keep_time(True))
        .link(dashboard.DashboardLink("Pages").type(model.DashboardLinkType.LINK).url("${dapp}").target_blank(True))
        .with_variable(
            dashboard.TextBoxVariable("dapp").label("where the pages are: url of dapp.toml").default_value("http://localhost:8090")
        )
    )  # fmt: skip
    for one in variables:
        made = made.with_variable(one)
    narrowed = " AND device =~ /^$device$/" if any(v.build().name == "device" for v in variables) else ""
    for name, colour, measurement in (
        ("Faults and events", "orange", "event"), ("Commands", "blue", "command"), ("Decisions", "purple", "decision")
    ):  # fmt: skip
        query = f'SELECT text, device FROM "{measurement}" WHERE $timeFilter{narrowed}'
        made = made.annotation(Annotation(name, colour, query))
    for panel in panels:
        made = made.with_panel(panel)
    return made


DEVICE_PAGE: Final = "${dapp}/devices/${__value.raw}"
REJECTED: Final = 'SELECT count("id") FROM "rejected" WHERE $timeFilter'


def fleet() -> Any:
    """All devices together."""
    latest = 'SELECT last("p") AS "p" FROM "minute" WHERE time > now() - 15m GROUP BY device, channel, role'
    mean = (
        'SELECT mean("p") AS "p" FROM "minute" WHERE $timeFilter '
        "GROUP BY time($__interval), device, channel, role fill(none)"
    )
    online = 'SELECT last("seq") AS "seq" FROM "batch" WHERE time > now() - 20m GROUP BY device'
    return board(
        "fleet", "Fleet", "All devices together: power, energy, who delivers and what was refused.",
        [
            number("Power now", "Sum of each channel's newest minute, of the last 15 minutes.",
                   f'SELECT sum("p") FROM ({latest}) WHERE time > now() - 15m GROUP BY role', units.Watt,
                   alias="$tag_role"),
            number("Energy today", "Accepted since midnight UTC.",
                   'SELECT sum("forward_kwh") FROM "day" WHERE $timeFilter GROUP BY role', units.KiloWattHour,
                   since="now/d", alias="$tag_role"),
            number("Energy this month", "Accepted since the first of the month, UTC.",
                   'SELECT sum("forward_kwh") FROM "day" WHERE $timeFilter GROUP BY role', units.KiloWattHour,
                   since="now/M", alias="$tag_role"),
            number("Devices that deliver", "Whose batches came in the last 20 minutes.",
                   f'SELECT count("seq") FROM ({online}) WHERE time > now() - 20m', units.Short, width=3)
            .decimals(0).no_value("0"),
            number("Refused today", "Messages that took no place in a chain, since midnight UTC.",
                   REJECTED, units.Short, width=3, since="now/d").decimals(0).no_value("0"),
            curve("Power of a day", "Means, summed over the devices, by what they measure.", units.Watt,
                  Influx(f'SELECT sum("p") FROM ({mean}) WHERE $timeFilter GROUP BY time($__interval), role fill(null)',
                         "$tag_role")).time_from("now-24h").interval("10m"),
            bars("Energy by hour", "Accepted energy of UTC hours; this hour grows.", units.KiloWattHour,
                 Influx('SELECT sum("forward_kwh") FROM "hour" WHERE $timeFilter GROUP BY time(1h), role fill(none)',
                        "$tag_role"), interval="1h"),
            bars("Energy by day", "Accepted energy of UTC days; today grows.", units.KiloWattHour,
                 Influx('SELECT sum("forward_kwh") FROM "day" WHERE $timeFilter GROUP BY time(1d), role fill(none)',
                        "$tag_role")).time_from("now-30d/d"),
            rows("Devices", "The newest batch of each device that sent in a week; its id leads to its page.",
                 'SELECT last("seq") AS "newest batch", "verdict", "reason" FROM "batch" WHERE $timeFilter '
                 "GROUP BY device",
                 link=("device", DEVICE_PAGE)).time_from("now-7d"),
        ],
    )  # fmt: skip


def device() -> Any:
    """One device, or those of an owner."""
    owner = variable("owner", "owner", 'SHOW TAG VALUES FROM "system" WITH KEY = "owner"', every=".*")
    chosen = variable(
        "device", "device", 'SHOW TAG VALUES FROM "system" WITH KEY = "label" WHERE "owner" =~ /^$owner$/',
        regex=r"/(?<text>[^|]+)\|(?<value>.+)/",
    )  # fmt: skip
    one = "device =~ /^$device$/ AND $timeFilter"
    means = f'SELECT mean("{{}}") FROM "minute" WHERE {one} GROUP BY time($__interval), channel, role fill(null)'
    windows = f'SELECT sum("hashes") AS "hashes" FROM "work" WHERE {one} GROUP BY time(10m), device fill(none)'
    by_channel = "channel $tag_channel, $tag_role"
    return board(
        "device", "Device and owner", "What one device measures, and how its batches were judged.",
        [
            number("Power now", "The newest sample of each channel, of the last 15 minutes.",
                   'SELECT last("p") FROM "sample" WHERE device =~ /^$device$/ AND time > now() - 15m '
                   "GROUP BY channel, role",
                   units.Watt, alias=by_channel),
            number("Energy today", "Accepted since midnight UTC.",
                   f'SELECT sum("forward_kwh") FROM "day" WHERE {one} GROUP BY channel, role', units.KiloWattHour,
                   since="now/d", alias=by_channel),
            number("Energy this month", "Accepted since the first of the month, UTC.",
                   f'SELECT sum("forward_kwh") FROM "day" WHERE {one} GROUP BY channel, role', units.KiloWattHour,
                   since="now/M", alias=by_channel),
            number("At work", "Of the chosen time: the ten-minute windows with credited proof of work.",
                   f'SELECT count("hashes") / (($__to - $__from) / 600000.0) FROM ({windows}) WHERE $timeFilter '
                   "GROUP BY device", units.PercentUnit).decimals(1)
            .thresholds(levels((None, "red"), (0.5, "orange"), (0.9, "green"))),
            curve("Power", "Means of minutes.", units.Watt,
                  Influx(means.format("p"), by_channel)),
            curve("Voltage", "Means of minutes.", units.Volt,
                  Influx(means.format("v"), by_channel), width=12, height=8),
            curve("Current", "Means of minutes.", units.Ampere,
                  Influx(means.format("i"), by_channel), width=12, height=8),
            bars("Energy by day", "Accepted energy of UTC days; today grows.", units.KiloWattHour,
                 Influx(f'SELECT sum("forward_kwh") FROM "day" WHERE {one} GROUP BY time(1d), channel, role fill(none)',
                        by_channel)).time_from("now-30d/d"),
            bars("Time without measurement", "By UTC day, in the gaps of the channel.", units.Seconds,
                 Influx(f'SELECT sum("gap_s") FROM "day" WHERE {one} GROUP BY time(1d), channel, role fill(none)',
                        by_channel), width=12).time_from("now-30d/d"),
            bars("Batches by day", "How they were judged, by UTC day.", units.Short,
                 *[Influx(f'SELECT sum("{verdict}") FROM "work_day" WHERE {one} GROUP BY time(1d) fill(none)', verdict,
                          ref=verdict) for verdict in ("accepted", "rejected", "held")],
                 width=12).time_from("now-30d/d"),
            rows("Newest batches that were not accepted", "With the reason, as docs/protocol.md has it.",
                 f'SELECT "seq", "verdict", "reason" FROM "batch" WHERE {one} AND "verdict" != \'accepted\' '
                 "ORDER BY time DESC LIMIT 50"),
        ],
        variables=(owner, chosen),
    )  # fmt: skip


def operations() -> Any:
    """What the services do."""
    return board(
        "operations", "Operations", "What ingest does, what it waits for, and what was refused.",
        [
            service("Ready", "1: ingest has all that it needs. Where it has not: the table of docs/alarms.md.",
                    "min(maxgreen_ingest_ready)", units.Short, width=3, good=1),
            service("Broker", "1: connected.", "min(maxgreen_ingest_mqtt_connected)", units.Short, width=3, good=1),
            service("Silent devices", "Heard in the last week, and not in the last 20 minutes.",
                    'max(maxgreen_ingest_devices{state="silent"})', units.Short, width=4),
            service("Newest beacon", "How long ago it was issued; one comes each minute.",
                    "time() - max(maxgreen_ingest_beacon_timestamp_seconds)", units.Seconds, width=4),
            service("View behind", "Changes of the ledger that InfluxDB lacks.",
                    "max(maxgreen_ingest_view_behind_changes)", units.Short, width=4),
            service("Room for the ledger", "Where a SQLite ledger lies.", "min(maxgreen_ingest_free_bytes)",
                    units.BytesIEC, width=3),
            service("First certificate to end", "Of the broker's authority and ingest's own.",
                    "min(maxgreen_ingest_certificate_expiry_timestamp_seconds) - time()", units.Seconds, width=3),
            running("Judged a second", "By verdict.", "sum by (verdict) (rate(maxgreen_ingest_batches_total[5m]))",
                    units.RequestsPerSecond, "{{verdict}}"),
            running("What waits", "A part of ingest that waits for what it needs; 1 while it does.",
                    "max by (part) (maxgreen_ingest_waiting)", units.Short, "{{part}}"),
            running("Refused by the broker, an hour", "Certificates, handshakes, clients, one name at two places.",
                    "sum by (kind) (increase(maxgreen_ingest_broker_refusals_total[1h]))", units.Short, "{{kind}}"),
            bars("Batches", "By arrival and verdict.", units.Short,
                 *[Influx(f'SELECT count("seq") FROM "batch" WHERE $timeFilter AND "verdict" = \'{verdict}\' '
                          "GROUP BY time($__interval) fill(0)", verdict, ref=verdict)
                   for verdict in ("accepted", "held", "rejected")], interval="1m", width=12),
            bars("Refused messages", "That took no place in a chain, by reason.", units.Short,
                 Influx(f"{REJECTED} GROUP BY time($__interval), reason fill(none)", "$tag_reason"),
                 interval="1m", width=12),
            rows("Refused, by reason", "In the chosen time.",
                 'SELECT count("id") AS "messages" FROM "rejected" WHERE $timeFilter GROUP BY reason', width=12),
            rows("Decisions", "Of operators, in the chosen time.",
                 'SELECT "who", "text", "device", "action" FROM "decision" WHERE $timeFilter '
                 "ORDER BY time DESC LIMIT 50",
                 width=12, link=("device", DEVICE_PAGE)),
        ],
        since="now-6h",
    )  # fmt: skip


def settlement() -> Any:
    """What months came to."""
    period = variable("period", "period", 'SHOW TAG VALUES FROM "period" WITH KEY = "period"', every=".*")
    of_period = "$timeFilter AND period =~ /^$period$/"
    return board(
        "settlement", "Settlement", "What closed periods came to: sent, received, lost, due, held, by line.",
        [
            number("Sent", "Energy that panels sent, in the closed periods of the chosen time.",
                   f'SELECT sum("sent_kwh") FROM "period" WHERE {of_period}', units.KiloWattHour),
            number("Received", "Energy that storage nodes received.",
                   f'SELECT sum("received_kwh") FROM "period" WHERE {of_period}', units.KiloWattHour),
            number("Lost", "The part of what was sent that was not received.",
                   f'SELECT sum("loss_kwh") / sum("sent_kwh") FROM "period" WHERE {of_period}', units.PercentUnit),
            number("To be paid", "What lines are due; a token for each kWh.",
                   f'SELECT sum("payable_kwh") FROM "period" WHERE {of_period}', units.KiloWattHour),
            bars("Sent and received", "By period.", units.KiloWattHour,
                 *[Influx(f'SELECT "{name}_kwh" FROM "period" WHERE {of_period}', name, ref=name)
                   for name in ("sent", "received", "payable")], width=12),
            bars("Held and disputed", "By period: what waits for a decision.", units.KiloWattHour,
                 *[Influx(f'SELECT "{name}_kwh" FROM "period" WHERE {of_period}', name, ref=name)
                   for name in ("held", "disputed")], width=12),
            bars("Lost, by line", "Of what each line sent.", units.PercentUnit,
                 Influx(f'SELECT "loss_share" FROM "line" WHERE {of_period} GROUP BY line', "$tag_line")),
            rows("Lines", "Energies in kWh, and the tokens that the order mints; the miner's number leads to its page.",
                 'SELECT "sent_kwh" AS "sent", "received_kwh" AS "received", "loss_share" AS "lost", '
                 '"payable_kwh" AS "payable", "minted" AS "tokens", "held_kwh" AS "held", '
                 '"disputed_kwh" AS "disputed", "trouble" '
                 f'FROM "line" WHERE {of_period} GROUP BY period, line, miner, node',
                 link=("miner", "${dapp}/systems/${__value.raw}")),
        ],
        variables=(period,), since="now-1y/M",
    )  # fmt: skip


def made() -> dict[str, str]:
    """Return the dashboards' files by name."""
    boards = {"fleet": fleet(), "device": device(), "operations": operations(), "settlement": settlement()}
    return {
        f"{name}.json": json.dumps(one.build(), cls=JSONEncoder, sort_keys=True, indent=1) + "\n"
        for name, one in boards.items()
    }


def main(arguments: list[str]) -> int:
    """Write them, or compare them with what is there."""
    wanted = made()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    if arguments == ["--check"]:
        wrong = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        for name in wrong:
            print(f"{FOLDER / name}: not what scripts/dashboards.py makes; run it")
        return bool(wrong)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
