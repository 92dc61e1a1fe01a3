"""The help of every command says what was written for it, word for word."""

import click
import pytest
import typer
from typer.testing import CliRunner

from maxgreen.cli import app


def commands():
    """Yield every command with the words that lead to it."""
    root = typer.main.get_command(app)

    def walk(command, words):
        yield words, command
        if isinstance(command, click.Group) or hasattr(command, "list_commands"):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None:
                    yield from walk(found, (*words, name))

    return list(walk(root, ()))


def plain(text):
    return "".join(text.split())


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_holds_each_options_text_whole(words):
    command = next(found for known, found in commands() if known == words)
    said = plain(CliRunner().invoke(app, [*words, "--help"]).output)
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text or parameter.name in {"help", "install_completion", "show_completion"}, (words, parameter.name)
        assert plain(text or "") in said, (words, parameter.name)
    assert words == () or command.help, words
