"""All actions, by name."""

from typing import Final

from maxgreen.actions.catalog import Action
from maxgreen.actions.dao_actions import DAO_ACTIONS
from maxgreen.actions.owner_actions import OWNER_ACTIONS

ACTIONS: Final[dict[str, Action]] = {action.name: action for action in (*OWNER_ACTIONS, *DAO_ACTIONS)}
