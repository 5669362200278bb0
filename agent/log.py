"""Logging of the processes: structlog, one line an event, to stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """structlog.dev imports rich where it is installed, for tracebacks we do not print: 10 MB and 90 ms."""
    hidden = {name: sys.modules.get(name) for name in ("rich", "rich.console", "rich.traceback")}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with _without_rich():
    import structlog


def configure(log_format: str = "text", level: str = "info") -> None:
    """Send events to stderr as `timestamp=… level=… event=…` or, for "json", as one object a line.

    What modules log through the standard library takes the same way.
    """
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    line: Any = structlog.processors.JSONRenderer()
    if log_format == "text":
        line = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    severity = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, line],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[_part, *shared], processors=[strip, line])
    )
    logging.basicConfig(handlers=[handler], level=severity, force=True)


def get(name: str) -> Any:
    """The logger of one part of the process; `part` says which in every line."""
    return structlog.get_logger(part=name)


def _part(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["part"] = event["_record"].name.removeprefix("agent.")
    return event
