"""The parameters of the requests that have many, for both clients."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optmigd.protocol.errors import OptmigError, from_wire

StrPath = str | os.PathLike[str]
Decision = Literal["give-up", "discard"]
Mode = Literal["precopy", "stop-and-copy"]
OnStall = Literal["throttle", "switch", "abort"]
Tracker = Literal["auto", "kernel", "compiler"]


def launch(
    image: StrPath,
    *,
    enclave: str,
    memory_bytes: int,
    dir: StrPath | None,
    shared: Sequence[StrPath],
    policy: bytes,
    env: Mapping[str, str] | None,
    args: Sequence[str],
    stdin: StrPath | None,
    tracker: Tracker = "auto",
) -> dict[str, Any]:
    """Parameters of `launch`. Paths become absolute: the daemon has a directory of its own."""
    return {
        "image": os.path.abspath(image),
        "enclave": enclave,
        "memory_bytes": memory_bytes,
        "dir": "" if dir is None else os.path.abspath(dir),
        "shared": [os.path.abspath(path) for path in shared],
        "policy": policy,
        "env": dict(env or {}),
        "args": list(args),
        "stdin": "" if stdin is None else os.path.abspath(stdin),
        **({} if tracker == "auto" else {"tracker": tracker}),
    }


def migrate(
    enclave: str,
    host: str,
    *,
    mode: Mode,
    downtime_limit_ms: float | None,
    max_bandwidth: int,
    streams: int | None,
    timeout_s: float | None,
    on_stall: OnStall | None,
    verify: bool,
    detach: bool,
) -> dict[str, Any]:
    """Parameters of `migrate`. What is None is left out: the daemon's settings decide."""
    chosen = {
        "downtime_limit_ms": downtime_limit_ms,
        "streams": streams,
        "timeout_s": timeout_s,
        "on_stall": on_stall,
    }
    return {
        "enclave": enclave,
        "host": host,
        "mode": mode,
        "max_bandwidth": max_bandwidth,
        "verify": verify,
        "detach": detach,
        **{key: value for key, value in chosen.items() if value is not None},
    }


def change(
    enclave_or_migration_id: str,
    *,
    downtime_limit_ms: float | None,
    max_bandwidth: int | None,
    on_stall: OnStall | None,
) -> dict[str, Any]:
    """Parameters of `set`. What is None stays as it is."""
    chosen = {
        "downtime_limit_ms": downtime_limit_ms,
        "max_bandwidth": max_bandwidth,
        "on_stall": on_stall,
    }
    return {
        **which(enclave_or_migration_id),
        **{key: value for key, value in chosen.items() if value is not None},
    }


def failure(migration: Mapping[str, Any]) -> OptmigError | None:
    """The error that a migration's own answer reports, if it does; the answer is its field
    `migration`.
    """
    error = migration.get("error")
    if not error:
        return None
    rest = {key: value for key, value in migration.items() if key != "error"}
    fields = {**(error.get("fields") or {}), "migration": rest}
    return from_wire(error["code"], error["message"], fields)


def which(enclave_or_migration_id: str) -> dict[str, Any]:
    """Parameters that say which: 32 hexadecimal digits are a migration's number."""
    if re.fullmatch(r"[0-9a-f]{32}", enclave_or_migration_id):
        return {"migration_id": enclave_or_migration_id}
    return {"enclave": enclave_or_migration_id}
