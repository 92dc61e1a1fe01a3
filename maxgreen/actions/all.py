"""All actions, by name."""

from typing import Final

from maxgreen.actions.catalog import Action, Who
from maxgreen.actions.dao_actions import DAO_ACTIONS
from maxgreen.actions.owner_actions import OWNER_ACTIONS

ACTIONS: Final[dict[str, Action]] = {action.name: action for action in (*OWNER_ACTIONS, *DAO_ACTIONS)}


def _command_of(action: Action) -> str:
    if action in OWNER_ACTIONS:
        return f"{'node' if action.who is Who.NODE else 'owner'} {action.name}"
    group = "operator" if action.who is Who.OPERATOR or action.name == "sweep" else "dao"
    return f"{group} {action.name.removesuffix('-order')}"


COMMANDS: Final = {name: _command_of(action) for name, action in ACTIONS.items()}  # which takes the same step
