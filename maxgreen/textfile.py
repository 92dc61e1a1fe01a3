"""Figures of commands that end, as files for node_exporter's textfile collector (Prometheus text format)."""

from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from maxgreen.errors import Fatal


def write_figures(folder: Path | None, name: str, figures: Mapping[str, tuple[str, float]]) -> None:
    """Write `maxgreen_NAME.prom`, whole or not at all: by metric, what it says and its value. No folder: nothing."""
    if folder is None:
        return
    registry = CollectorRegistry()
    for metric, (text, value) in figures.items():
        Gauge(f"maxgreen_{name}_{metric}", text, registry=registry).set(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"maxgreen_{name}.prom"
        write_to_textfile(str(path), registry)
        path.chmod(0o644)  # its reader is another user
    except OSError as error:
        raise Fatal(f"metrics {folder}: {error.strerror}") from error
