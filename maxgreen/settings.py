"""Settings: one TOML file per service, environment override, one readable sentence per mistake."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from maxgreen.errors import Fatal


class Table(BaseModel):
    """A table of a settings file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceSettings(BaseSettings):
    """A service's settings; `MAXGREEN_<SERVICE>__TABLE__KEY` overrides a key of the file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment comes before the file, which is handed over as arguments."""
        return env_settings, init_settings


S = TypeVar("S", bound=ServiceSettings)


def load(kind: type[S], path: Path) -> S:
    """Read a settings file; Fatal names the file, the key and the cure. Relative paths stay as they are."""
    try:
        value = tomllib.loads(path.read_text())
    except OSError as error:
        raise Fatal(f"settings {path}: {error.strerror}; 'config sample' prints a file to start from") from error
    except tomllib.TOMLDecodeError as error:
        raise Fatal(f"settings {path}: {error}") from error
    try:
        return kind(**value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise Fatal(f"settings {path}: {key}: {first['msg']}; see 'config sample'") from error


def config_commands(kind: type[ServiceSettings], default: Path) -> typer.Typer:
    """Return the commands `config sample` and `config check` of a service."""
    app = typer.Typer(no_args_is_help=True, help="The settings file.")

    @app.command("sample")
    def print_sample() -> None:
        """Print the commented default settings."""
        typer.echo(sample(kind), nl=False)

    @app.command("check")
    def check(config: Annotated[Path, typer.Option("--config", "-c", help="settings file")] = default) -> None:
        """Validate the settings without touching the network."""
        load(kind, config)
        typer.echo(f"{config}: ok")

    return app


def sample(kind: type[BaseModel]) -> str:
    """Return the commented default settings, as `config sample` prints them."""
    return "\n".join(_sample(kind, "")) + "\n"


def _sample(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    tables = []
    for name, field in kind.model_fields.items():
        inner = _table_of(field.annotation)
        if inner is not None:
            tables.append((name, field, inner))
            continue
        yield from (f"## {line}" for line in (field.description or "").splitlines())
        if field.is_required():
            empty = '[""]' if get_origin(field.annotation) is tuple else '""'
            yield f"{name} = {empty}"
        else:
            value = field.get_default(call_default_factory=True, validated_data={})
            yield f"# {name} = {_toml(value)}"
    for name, field, (model, repeated) in tables:
        yield ""
        yield from (f"## {line}" for line in (field.description or "").splitlines())
        title = f"{prefix}{name}"
        yield f"[[{title}]]" if repeated else f"[{title}]"
        yield from _sample(model, f"{title}.")


def _table_of(annotation: Any) -> tuple[type[BaseModel], bool] | None:
    candidates = [annotation, *get_args(annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate, annotation is not candidate and type(None) not in candidates
    return None


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value)
