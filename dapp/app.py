"""The application: guard, pages, API, files."""

from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.staticfiles import StaticFiles

from dapp import api
from dapp.audits import Audits
from dapp.guard import Guard, explain_errors
from dapp.live import Live
from dapp.openapi import describe
from dapp.pages import ROUTERS
from dapp.pages.rendering import error_page, refusal_page
from dapp.world import World
from maxgreen import __version__

_ABOUT: Final = (
    "What the pages show, for scripts. Sign in with a wallet, make a token on the page *Account*, and send it as "
    "`Authorization: Bearer mgt_…`. Energies are mW·s (1 kWh = 3.6e9), amounts of tokens wei, as decimal strings "
    "where they may be large; times are unix s or ms, as their names say. Lists come as CSV with `Accept: text/csv`. "
    "Errors are RFC 9457 problems."
)


def make_app(world: World, live: Live, audits: Audits) -> FastAPI:
    """Return the application over what it looks at."""
    app = FastAPI(
        title="MaxCoin Green Energy", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )  # fmt: skip
    app.state.world, app.state.live, app.state.audits = world, live, audits
    app.add_middleware(Guard, world=world, page_of=refusal_page)
    explain_errors(app, error_page)

    @app.get("/health/live", include_in_schema=False)
    async def is_live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health/ready", include_in_schema=False)
    def is_ready(response: Response) -> dict[str, str]:
        missing = world.missing()
        if missing:
            response.status_code = 503
        return {"status": missing or "ok"}

    static = StaticFiles(directory=str(files("dapp").joinpath("static")))
    app.mount("/static", GZipMiddleware(static, minimum_size=500))

    for router in (api.router, *ROUTERS):
        app.include_router(router)
    describe(app)
    return app
