"""An agent's settings as a command is given them: its flags, the environment, and the file of --config."""

from __future__ import annotations

import inspect
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.config import CONFIG_VARIABLE, Given, Resolved, Setting, check, environment, merge, settings
from agent.config.fields import flag, variable

CONFIG_HELP = "YAML file of settings, named as the flags are, with _ for -; flags and variables win over it."
CONFIG = Annotated[
    Path | None, typer.Option("--config", envvar=CONFIG_VARIABLE, help=CONFIG_HELP, show_default=False, metavar="FILE")
]


def signature(*more: inspect.Parameter) -> inspect.Signature:
    """Of a command that takes the flags of every setting, --config, and what else it says."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            *more,
            inspect.Parameter("config", keyword, default=None, annotation=CONFIG),
            *map(_parameter, settings()),
        ]
    )


def option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    """An option of a command's own; `kind`: its annotation."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _parameter(setting: Setting) -> inspect.Parameter:
    flags = [setting.flag]
    if setting.shape == "switch":
        flags = ["--remove-on-exit/--keep" if setting.field == "remove_on_exit" else f"{flags[0]}/--no-{flags[0][2:]}"]
    default: Any = setting.default
    if isinstance(default, (tuple, list)):
        default = ",".join(map(str, default))
    text = setting.description if default in ("", None, {}, False) else f"{setting.description} [default: {default}]"
    option = typer.Option(*flags, envvar=setting.variable, help=text, show_default=False, metavar=_metavar(setting))
    kind: Any = bool | None if setting.shape == "switch" else str | None
    return inspect.Parameter(
        setting.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _metavar(setting: Setting) -> str | None:
    if setting.shape == "choice":
        return "|".join(setting.choices)
    return {"list": "LIST", "pairs": "PAIRS", "text": "TEXT"}.get(setting.shape)


def flagged(ctx: typer.Context, flags: Mapping[str, Any]) -> dict[str, str]:
    """Field → text of the settings that stand in the command line itself."""
    chosen = {field: value for field, value in flags.items() if is_flag(ctx, field)}
    return {field: str(value) for field, value in chosen.items() if field != "config" and value is not None}


def is_flag(ctx: typer.Context, field: str) -> bool:
    source = ctx.get_parameter_source(field)
    return source is not None and source.name == "COMMANDLINE"


def gathered(config: Path | None, flags: Mapping[str, str], without: Container[str] = ()) -> Resolved:
    """The settings together; `check` says whether they fit. `flags`: field → text. `without`: fields that file and
    environment have no say in. Raises ConfigError."""
    here = os.getcwd()  # noqa: PTH109  # links stay links
    variables = {field: Given(text, variable(field), here) for field, text in environment().items()}
    words = {field: Given(text, flag(field), here) for field, text in flags.items()}
    about = {field: one for field, one in (_of_file(config) | variables).items() if field not in without}
    return merge(about, words)


def _of_file(config: Path | None) -> dict[str, Given]:
    if config is None:
        return {}
    from agent.config import file

    return file.read(config)


def resolve(ctx: typer.Context, flags: Mapping[str, Any]) -> Resolved:
    """The settings an agent starts with. Raises ConfigError."""
    resolved = gathered(flags["config"], flagged(ctx, flags))
    check(resolved)
    return resolved
