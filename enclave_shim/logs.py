"""The shim agent's log: JSON, one event a line, and never the content of a page, a key or evidence.

The agent holds what nobody else may see, so two rules are built into the logger instead of being
left to every call: bytes are replaced by their length, and tracebacks have no variables.
"""

from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog


def agent_logger(file: TextIO) -> structlog.stdlib.BoundLogger:
    """Return a logger that writes to an open file."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            hide_bytes,
            structlog.processors.format_exc_info,  # plain text, without local variables
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


def hide_bytes(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace every value of bytes by its length: keys, evidence and pages never reach a log."""
    for key, value in event.items():
        event[key] = _without_bytes(value)
    return event


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {_without_bytes(key): _without_bytes(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_bytes(item) for item in value]
    return value
