"""The API's description: with an example of every answer, and of the errors."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI

_PROBLEM = {
    "type": "about:blank", "title": "Not Found", "status": 404,
    "detail": "there is no system 9 that you may see; sign in as its owner", "instance": "/api/v1/systems/9",
}  # fmt: skip


def describe(app: FastAPI) -> None:
    """Let the application describe itself with examples."""
    plain = app.openapi

    @cache
    def described() -> dict[str, Any]:
        schema = plain()
        for name, example in examples().items():
            method, _, path = name.partition(" ")
            responses = schema["paths"][path][method.lower()]["responses"]
            [done] = [answer for status, answer in responses.items() if status.startswith("2")]
            done["content"] = {"application/json": {**done.get("content", {}).get("application/json", {}), **example}}
            problem = {
                "description": "What is wrong (RFC 9457)",
                "content": {"application/problem+json": {"example": _PROBLEM}},
            }
            responses["default"] = problem
        return schema

    app.openapi = described  # type: ignore[method-assign]


@cache
def examples() -> dict[str, dict[str, Any]]:
    """Return an answer of each route, by method and path, as `example` of its content."""
    value = json.loads(files("dapp").joinpath("examples.json").read_bytes())
    return {name: {"example": example} for name, example in value.items()}
