"""Settings from several places, laid over each other: a checked Config, and where each of its values came from."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.config import checks
from agent.config.fields import PATHS, PREFIX, Config, ConfigError, Setting, flag, settings, variable

DEFAULT = "default"
CONFIG_VARIABLE = PREFIX + "CONFIG"
"""Names the file of settings; it is none itself."""

# A Service named gatehouse makes Kubernetes put GATEHOUSE_SERVICE_HOST, GATEHOUSE_PORT_53_UDP … into pods' environment.
_SERVICE_LINK = re.compile(r"GATEHOUSE_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?)")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Value = str | list[str] | dict[str, str]
"""A text as flags and variables give it, or a list or map of texts."""


class Given(msgspec.Struct, frozen=True):
    """`origin`: --mtu, GATEHOUSE_MTU, or FILE:LINE. `folder`: that relative paths are relative to."""

    value: Value
    origin: str
    folder: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """`origins`: where each field's value is from: "default", FILE:LINE, a variable or a flag."""

    config: Config
    origins: dict[str, str]


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Field → text of the GATEHOUSE_* variables that are set. Raises ConfigError for one that means nothing."""
    found: dict[str, str] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or _SERVICE_LINK.fullmatch(name):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in Config.__struct_fields__:
            near = f"did you mean {variable(meant)}?" if (meant := nearest(field)) else "see `gatehouse agent --help`"
            raise ConfigError(f"{name} is not a setting of Gatehouse; {near}")
        found[field] = text
    return found


def nearest(name: str) -> str:
    """The field that somebody who wrote this may have meant; "" where none is near."""
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).replace("-", "_").lower()
    return next(iter(difflib.get_close_matches(snake, Config.__struct_fields__, 1, 0.6)), "")


def build(texts: Mapping[str, str]) -> Config:
    """A checked Config from field → text, as flags give it. Raises ConfigError."""
    if unknown := set(texts) - set(Config.__struct_fields__):
        raise ConfigError(f"{min(unknown)} is not a setting of Gatehouse; see `gatehouse agent --help`")
    resolved = merge({field: Given(text, flag(field)) for field, text in texts.items()})
    check(resolved)
    return resolved.config


def merge(*layers: Mapping[str, Given]) -> Resolved:
    """Later layers win. Each value is of its field's type; whether they fit, `check` says. Raises ConfigError."""
    given: dict[str, Given] = {}
    for layer in layers:
        given |= layer
    values = {s.field: _typed(s, given[s.field]) for s in settings() if s.field in given}
    values["node"] = values.get("node") or os.uname().nodename
    if values.get("ipam", "cidrs") != "cidrs":
        values.setdefault("pod_cidrs", ())
    origins = {field: given[field].origin if field in given else DEFAULT for field in Config.__struct_fields__}
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise _placed(_about(str(error)), origins) from None
    return Resolved(config, origins)


def check(resolved: Resolved) -> None:
    """Raises ConfigError, which names the place of the setting that cannot be."""
    try:
        checks.check(resolved.config)
        if resolved.config.source == "kubernetes":
            _own_block(resolved)
    except ConfigError as error:
        raise _placed(error, resolved.origins) from None


def _own_block(resolved: Resolved) -> None:
    """A default that is the same on every node cannot serve a cluster."""
    config = resolved.config
    if config.ipam == "cidrs" and not config.cni_chain and resolved.origins["pod_cidrs"] == DEFAULT:
        raise ConfigError(
            "say where pods of this node get their addresses: node (the Node's podCIDRs), pool (a block of --pool), "
            "or cidrs and --pod-cidrs of this node's own",
            "ipam",
        )


def _typed(setting: Setting, given: Given) -> Any:
    """The value for msgspec, of the right shape. Raises ConfigError."""
    try:
        value = _shaped(setting, given.value)
        if setting.number is not None:
            value = _numbers(setting, value)
    except ConfigError as error:
        raise _placed(error, {setting.field: given.origin}) from None
    if setting.field in PATHS and value and given.folder:
        return str(Path(given.folder, value))
    return value


def _shaped(setting: Setting, value: Value) -> Any:
    if not isinstance(value, str):
        if isinstance(value, list) and setting.shape == "list":
            return value
        if isinstance(value, dict) and setting.shape == "pairs":
            return value
        what, meant = ("a list" if isinstance(value, list) else "a map"), _MEANT[setting.shape]
        raise ConfigError(f"{what} is given where {meant} is meant", setting.field)
    items = [item.strip() for item in value.split(",") if item.strip()]
    if setting.shape == "list":
        return items
    if setting.shape == "pairs":
        if bad := [item for item in items if "=" not in item]:
            raise ConfigError(f"{bad[0]!r} is not NAME=NUMBER", setting.field)
        return dict(item.split("=", 1) for item in items)
    if setting.shape == "switch":
        if value.lower() not in _SWITCH:
            raise ConfigError(f"{value!r} is neither true nor false", setting.field)
        return _SWITCH[value.lower()]
    return value


_MEANT = {"list": "a list", "pairs": "a map", "switch": "true or false", "choice": "one word", "text": "one value"}


def _numbers(setting: Setting, value: Any) -> Any:
    assert setting.number is not None
    if isinstance(value, list):
        return [_number(setting, item) for item in value]
    if isinstance(value, dict):
        return {name: _number(setting, item) for name, item in value.items()}
    return _number(setting, value)


def _number(setting: Setting, text: str) -> int | float:
    try:
        return msgspec.convert(text, setting.number, strict=False)
    except msgspec.ValidationError:
        whole = "a whole number" if setting.number is int else "a number"
        raise ConfigError(f"{text!r} is not {whole}", setting.field) from None


def _about(message: str) -> ConfigError:
    """msgspec's sentence: "Expected `int` >= 1280 - at `$.mtu`" → about mtu: "expected …"."""
    text, _, path = message.partition(" - at `$.")
    return ConfigError(f"{text[0].lower()}{text[1:]}", re.split(r"[`\[]", path)[0])


def _placed(error: ConfigError, origins: Mapping[str, str]) -> ConfigError:
    """About a value of the file or the environment, the error names the place in it."""
    origin = origins.get(error.field, DEFAULT)
    if not error.field or origin in (DEFAULT, flag(error.field)):
        return error
    place = origin if origin == variable(error.field) else f"{origin}: {error.field}"
    return ConfigError(error.sentence, error.field, place)
