"""Health and metrics; pages and the API are `maxgreen dapp`'s."""

from collections.abc import Callable

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ingest.metrics import Metrics


def make_app(metrics: Metrics, ready: Callable[[], str | None]) -> FastAPI:
    """Return the web application; `ready` says what is missing, or None."""
    app = FastAPI(title="MaxCoin Green Energy ingest", docs_url=None, redoc_url=None, openapi_url=None)

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
        ready()  # it sets what the gauges say of it
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
