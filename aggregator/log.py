"""Log lines to standard error: one per transition, key=value; coloured columns on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from aggregator.config import LogLevel

KEYS = ["timestamp", "level", "event"]
LEVELS = {LogLevel.DEBUG: logging.DEBUG, LogLevel.INFO: logging.INFO, LogLevel.WARNING: logging.WARNING}


def set_up(level: LogLevel, *, tracebacks: bool) -> None:
    """Configures logging for this process. Without `tracebacks` an unexpected error is one line."""
    terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if terminal
        else structlog.processors.LogfmtRenderer(key_order=KEYS, drop_missing=True)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info
            if tracebacks and not terminal
            else _keep
            if tracebacks
            else _shorten,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_to_standard_error,
    )


def _to_standard_error(*_names: object) -> structlog.PrintLogger:
    """What standard error is when the line is written: whoever runs a command inside a program may exchange it."""
    return structlog.PrintLogger(sys.stderr)


def _keep(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def _shorten(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    error = event.pop("exc_info", None)
    if isinstance(error, BaseException):
        event["detail"] = str(error).splitlines()[0][:200] if str(error) else ""
    return event
