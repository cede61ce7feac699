"""Logs: for people on a terminal, JSON otherwise, and never a key."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from optmigd.enclave_shim.logs import agent_logger
from optmigd.logs import Format, configure_logging

KEY = b"\x13\x37" * 16


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def log_one(stream: io.StringIO, format: Format) -> str:
    configure_logging("info", format, stream)
    log = structlog.get_logger().bind(enclave="join")
    log.debug("hidden")
    log.info("round_completed", pages=3, key=KEY, nested={"keys": [KEY, "x"]})
    return stream.getvalue()


def test_a_pipe_gets_one_json_object_a_line() -> None:
    (line,) = log_one(io.StringIO(), "auto").splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "round_completed",
        "level": "info",
        "enclave": "join",
        "pages": 3,
        "key": "<32 bytes>",
        "nested": {"keys": ["<32 bytes>", "x"]},
    }


def test_a_terminal_gets_text_for_people() -> None:
    text = log_one(Terminal(), "auto")
    assert "\x1b[" in text
    assert "round_completed" in text
    assert "hidden" not in text
    assert repr(KEY)[2:-1] not in text


def test_a_form_can_be_forced() -> None:
    assert json.loads(log_one(Terminal(), "json"))["pages"] == 3
    assert "\x1b[" not in log_one(io.StringIO(), "console")


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(format: Format) -> None:
    stream = io.StringIO()
    configure_logging("info", format, stream)

    def fail(private_key: str) -> None:
        raise ValueError("broken")

    secret = "/".join(["top", "secret"])
    try:
        fail(secret)
    except ValueError:
        structlog.get_logger().exception("it_failed")
    assert "broken" in stream.getvalue()
    assert secret not in stream.getvalue()


def test_an_agents_log_shows_neither_bytes_nor_local_variables() -> None:
    stream = io.StringIO()
    log = agent_logger(stream)
    log.info("page_sent", key=KEY, nested={"keys": [KEY, memoryview(KEY)]})

    def fail(private_key: str) -> None:
        raise ValueError("broken")

    secret = "/".join(["top", "secret"])
    try:
        fail(secret)
    except ValueError:
        log.exception("it_failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["key"] == "<32 bytes>"
    assert first["nested"] == {"keys": ["<32 bytes>", "<32 bytes>"]}
    assert "ValueError: broken" in second["exception"]
    assert secret not in stream.getvalue()
