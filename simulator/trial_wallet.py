"""A wallet for trials: the well-known accounts of a local chain, in the browser, without installing one.

It signs whatever it is asked to, so it is only ever beside a chain whose keys everybody knows.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from maxgreen.chain.client import Chain
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.errors import MaxgreenError

_SCRIPT: Final = """\
for (const [name, address] of Object.entries(ACCOUNTS)) {
  const provider = {
    on() {},
    async request({ method, params }) {
      const body = JSON.stringify({ address, method, params: params ?? [] });
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch("/trial/rpc", { method: "POST", headers, body });
      const { result, error } = await answer.json();
      if (error) throw Object.assign(new Error(error), { code: -32000 });
      return result;
    },
  };
  const icon = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E";
  const info = { uuid: address, name: `Trial: ${name}`, rdns: `trial.${name}`, icon };
  const detail = Object.freeze({ info, provider });
  const announce = () => window.dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail }));
  window.addEventListener("eip6963:requestProvider", announce);
  announce();
}
"""


class Asked(BaseModel):
    """What a page asks of a wallet (EIP-1193)."""

    address: str
    method: str = Field(max_length=60)
    params: list[Any] = Field(max_length=10)


def trial_wallet(chain: Chain, accounts: Mapping[str, LocalAccount]) -> APIRouter:
    """Return the routes of a wallet with these accounts, by the names that people see."""
    router = APIRouter(include_in_schema=False)
    by_address = {str(account.address): account for account in accounts.values()}
    listed = json.dumps({name: account.address for name, account in accounts.items()})

    @router.get("/trial/wallet.js")
    def script() -> Response:
        return Response(f"const ACCOUNTS = {listed};\n{_SCRIPT}", media_type="text/javascript")

    @router.post("/trial/rpc")
    def rpc(asked: Asked) -> dict[str, Any]:
        account = by_address.get(asked.address)
        if account is None:
            return {"error": "this wallet has no such account"}
        try:
            return {"result": _answer(chain, account, asked)}
        except (ChainRefusedError, MaxgreenError, ValueError, LookupError, TypeError) as error:
            return {"error": str(error)}

    return router


def _answer(chain: Chain, account: LocalAccount, asked: Asked) -> Any:
    match asked.method:
        case "eth_requestAccounts" | "eth_accounts":
            return [account.address]
        case "eth_chainId":
            return hex(chain.chain_id)
        case "wallet_switchEthereumChain":
            return None
        case "personal_sign":
            text = encode_defunct(hexstr=asked.params[0])
            return f"0x{account.sign_message(text).signature.hex().removeprefix('0x')}"
        case "eth_sendTransaction":
            [sent] = asked.params
            return f"0x{chain.send(account, sent['to'], bytes.fromhex(sent['data'][2:])).hex()}"
        case _:
            raise ValueError(f"{asked.method}: this wallet does not know it")
