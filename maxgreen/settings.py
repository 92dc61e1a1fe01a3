"""Settings: one TOML file per service, environment override, one readable sentence per mistake."""

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from maxgreen.errors import Fatal, MaxgreenError


def _path_or_none(value: Any) -> Any:
    return None if value in {"", None} else value


NoPath = Annotated[Path | None, BeforeValidator(_path_or_none)]
"""A path that may be left out; an empty string leaves it out."""


class Table(BaseModel):
    """A table of a settings file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServiceSettings(BaseSettings):
    """A service's settings; `MAXGREEN_<SERVICE>__TABLE__KEY` overrides a key of the file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, env_nested_delimiter="__")
    command: ClassVar[str]  # whose settings they are

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

    def faults(self) -> Iterator[str]:
        """Yield what `run` would refuse though every value has the right form; touches files, no network."""
        yield from ()


S = TypeVar("S", bound=ServiceSettings)


def load(kind: type[S], path: Path) -> S:
    """Read a settings file; Fatal names the file, the key and the cure. Relative paths stay as they are."""
    settings, mistakes = _read(kind, path)
    if settings is None:
        raise Fatal(f"settings {path}: {mistakes[0]}; see 'maxgreen {kind.command} config sample'")
    return settings


def load_to_run(kind: type[S], path: Path) -> S:
    """Read a settings file for a service that begins; Fatal with the first thing that `config check` finds."""
    settings = load(kind, path)
    for fault in settings.faults():
        raise Fatal(f"settings {path}: {fault}; 'maxgreen {kind.command} config check' names all that is wrong")
    return settings


def _read(kind: type[S], path: Path) -> tuple[S | None, list[str]]:
    """Return the settings, or None and one sentence per mistake."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Fatal(
            f"settings {path}: {error.strerror}; 'maxgreen {kind.command} config sample' prints a file to start from"
        ) from error
    except UnicodeDecodeError as error:
        raise Fatal(
            f"settings {path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise Fatal(f"settings {path}: {error}") from error
    try:
        return kind(**value), []
    except ValidationError as error:
        return None, [
            f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]


def tried(name: str, step: Callable[[], object]) -> Iterator[str]:
    """Yield what a step says is wrong with a setting."""
    try:
        step()
    except MaxgreenError as error:
        yield f"{name}: {error}"


def missing_file(name: str, path: Path | None) -> Iterator[str]:
    """Yield a sentence when a file that settings name can't be read."""
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        yield f"{name} = {path}: {error.strerror}"


def config_commands(kind: type[ServiceSettings], default: Path) -> typer.Typer:
    """Return the commands `config sample` and `config check` of a service."""
    app = typer.Typer(no_args_is_help=True, help="The settings file.")

    @app.command("sample")
    def print_sample() -> None:
        """Print the commented default settings."""
        typer.echo(sample(kind), nl=False)

    @app.command("check")
    def check(config: Annotated[Path, typer.Option("--config", "-c", help="settings file")] = default) -> None:
        """Find all that 'run' would refuse, without touching the network."""
        settings, mistakes = _read(kind, config)
        mistakes += settings.faults() if settings is not None else ()
        for mistake in mistakes[:-1]:
            typer.echo(f"maxgreen: settings {config}: {mistake}", err=True)
        if mistakes:
            raise Fatal(f"settings {config}: {mistakes[-1]}")
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
