"""The embedded chain over JSON-RPC, for trials with several processes."""

import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from hexbytes import HexBytes
from web3.datastructures import AttributeDict
from web3.types import RPCEndpoint

from maxgreen.chain.embedded import open_embedded
from maxgreen.chain.explain import revert_data
from maxgreen.clock import Clock
from maxgreen.service import listen

MINE = "evm_mine"


def make_app(file: Path, clock: Clock) -> FastAPI:
    """Return the application; requests are answered one after another."""
    web3 = open_embedded(file, clock)
    provider: Any = web3.provider
    lock = threading.Lock()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        envelope = {"jsonrpc": "2.0", "id": call.get("id")}
        try:
            with lock:
                if call["method"] == MINE:
                    provider.ethereum_tester.mine_block()
                    return {**envelope, "result": "0x0"}
                response = web3.manager._make_request(RPCEndpoint(call["method"]), call.get("params", []))  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 - whatever the chain raises is an answer
            failure: dict[str, Any] = {"code": 3, "message": str(error)}
            data = revert_data(error)
            if data is not None:
                failure["data"] = "0x" + data.hex()
            return {**envelope, "error": failure}
        if "error" in response:
            return {**envelope, "error": response["error"]}
        return {**envelope, "result": _plain(response["result"])}

    @app.post("/")
    async def rpc(request: Request) -> Any:
        body = await request.json()
        return [answer(call) for call in body] if isinstance(body, list) else answer(body)

    return app


def serve(file: Path, port: int, clock: Clock) -> None:
    """Serve until SIGTERM."""
    at = listen("127.0.0.1", port, "--port")
    config = uvicorn.Config(make_app(file, clock), log_level="warning")
    url = f"http://127.0.0.1:{at.getsockname()[1]}"
    print(f"chain {file} at {url}: give it as --rpc, or as rpc in settings", flush=True)  # noqa: T201
    uvicorn.Server(config).run(sockets=[at])


def _plain(value: Any) -> Any:
    """Turn the provider's answers into JSON-RPC: quantities and bytes as hex."""
    if isinstance(value, (dict, AttributeDict)):
        return {key: _plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    if isinstance(value, (bytes, HexBytes)):
        return "0x" + bytes(value).hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return value
