"""Setting up structlog, for programs that want it: the daemon's command line does.

Nothing here runs on import; a library must leave the logging of its host program alone.
"""

import sys
from typing import Literal, TextIO

import structlog

from optmigd.enclave_shim.logs import hide_bytes

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

# Local variables hold keys and pages: tracebacks are written without them, in both forms.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logging(
    level: Level = "info", format: Format = "auto", stream: TextIO | None = None
) -> None:
    """Send structlog's events to a stream, for people or for machines.

    Args:
        level: the least important level that is written.
        format: ``console`` for people, ``json`` for one object a line; ``auto`` is console if the
            stream is a terminal.
        stream: where to; standard error if None.
    """
    stream = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and stream.isatty())
    renderer: structlog.typing.Processor
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer(sort_keys=True, default=str)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            hide_bytes,
            *([] if console else [_TRACEBACKS]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
