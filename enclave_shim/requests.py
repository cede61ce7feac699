"""The parameters of Contract 1's requests and events, with their bounds."""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.connection import Params
from optmigd.enclave_shim.migration.common import DEFAULT_SWITCHOVER_STALL_S
from optmigd.protocol.convergence import OnStall
from optmigd.protocol.errors import RemoteProtocolError

MAX_ARENA_BYTES = 1 << 44

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Memory = Annotated[int, Meta(ge=1 << 20, le=MAX_ARENA_BYTES)]
StreamCount = Annotated[int, Meta(ge=1, le=64)]
P = TypeVar("P", bound=msgspec.Struct)


class Launch(msgspec.Struct, forbid_unknown_fields=True):
    """Start an enclave."""

    enclave: str
    image: str
    policy: bytes
    args: list[str]
    env: dict[str, str]
    memory_bytes: Memory
    own_dir: str
    shared: Annotated[list[str], Meta(max_length=abi.RT_MAX_SHARED)]
    stdin: str
    tracker: Literal["auto", "kernel", "compiler"] = "auto"


class Receive(msgspec.Struct, forbid_unknown_fields=True):
    """Get ready to take an enclave over."""

    migration_id: Id16
    enclave: str
    generation: int
    image: str
    policy: bytes
    memory_bytes: Memory
    resident_bytes: int
    streams: StreamCount
    dry_run: bool
    source_host: Key32
    destination_host: Key32
    own_dir: str


class Export(msgspec.Struct, forbid_unknown_fields=True):
    """Move the enclave away."""

    migration_id: Id16
    mode: Literal["precopy", "stop-and-copy"]
    streams: StreamCount
    downtime_limit_ms: float
    max_bandwidth: int
    on_stall: OnStall
    verify: bool
    timeout_s: float
    dry_run: bool
    source_host: Key32
    destination_host: Key32
    switchover_stall_s: Annotated[float, Meta(gt=0, le=3600)] = DEFAULT_SWITCHOVER_STALL_S
    ask_for_turn: bool = False


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What of a migration's orders changes while it is under way; what is absent stays."""

    migration_id: Id16
    downtime_limit_ms: Annotated[float, Meta(ge=0)] | None = None
    max_bandwidth: Annotated[int, Meta(ge=0)] | None = None
    on_stall: OnStall | None = None


class AddStream(msgspec.Struct, forbid_unknown_fields=True):
    """A data stream; its descriptor comes with the frame."""

    migration_id: Id16
    index: int


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """A request about one migration."""

    migration_id: Id16


class Hold(msgspec.Struct, forbid_unknown_fields=True):
    """Whether bulk work waits: another enclave switches over."""

    hold: bool


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    """How long to sample dirty pages."""

    interval_s: Annotated[float, Meta(gt=0, le=60)]


class Payload(msgspec.Struct, forbid_unknown_fields=True):
    """An event that carries an opaque payload."""

    migration_id: Id16
    payload: bytes


def read_params(params: Params, type_: type[P]) -> P:
    """Read a request's parameters.

    Raises:
        RemoteProtocolError: a parameter is missing, unknown or out of bounds.

    """
    try:
        return msgspec.convert(params, type_)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the request's parameters are not valid: {error}") from error
