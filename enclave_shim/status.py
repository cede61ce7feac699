"""What an agent answers about its instance (Contract 1, `status`)."""

from optmigd.enclave_shim import preflight, trackers
from optmigd.enclave_shim.abi import RtState
from optmigd.enclave_shim.connection import Params
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.holdings import holdings
from optmigd.enclave_shim.migration.common import RECORD_BYTES, Enclave
from optmigd.enclave_shim.platforms import Platform
from optmigd.protocol.blockers import Blocker


def describe(enclave: Enclave) -> Params:
    """What does not change while an instance lives."""
    return {
        "measurement": enclave.identity.measurement.hex(),
        "platform": enclave.identity.platform.name,
        "tracker": trackers.name_of(enclave),
    }


def nobody(platform: Platform, state: str) -> Params:
    """The status of an agent without an instance of its own."""
    return {
        "measurement": "",
        "platform": platform.name,
        "tracker": "none",
        "state": state,
        "exit_status": None,
        "memory_bytes": 0,
        "resident_bytes": 0,
        "generation": 0,
        "pid": 0,
        "blockers": [],
        "holds": {},
        "refused_calls": [],
    }


def of_enclave(enclave: Enclave, exit_status: int | None) -> Params:
    """The status of an instance; blocks while it looks through its directory."""
    with enclave.arena.kept() as there:
        return _of_memory(enclave, exit_status, there=there)


def _of_memory(enclave: Enclave, exit_status: int | None, *, there: bool) -> Params:
    return {
        **describe(enclave),
        "state": _state_name(enclave),
        "exit_status": exit_status,
        "memory_bytes": enclave.arena.size_bytes,
        "resident_bytes": enclave.arena.resident_bytes(),
        "generation": enclave.generation,
        "pid": enclave.process.pid,
        "blockers": _blockers(enclave) if there else [],
        "holds": holdings(enclave.arena) if there else {},
        "refused_calls": [
            {"call": refused.call, "place": refused.place}
            for refused in enclave.process.ctl.refused_calls(enclave.identity.image.symbols)
        ],
    }


def _blockers(enclave: Enclave) -> list[Params]:
    if enclave.process.exited.is_set():
        return []
    files = TravellingFiles(enclave.own_dir, enclave.io_files, RECORD_BYTES)
    tracker, why = trackers.missing(enclave)
    found = [
        *([Blocker("tracker", tracker, why)] if why else []),
        *preflight.open_files(enclave.arena, enclave.identity.image.symbols).blockers,
        *files.blockers(),
    ]
    return [dict(blocker.as_fields()) for blocker in found]


def _state_name(enclave: Enclave) -> str:
    """The state of Contract 1's `status`."""
    if enclave.process.released:
        return "released"
    names = {RtState.PREPARED: "waiting"}
    state = enclave.process.state
    return names.get(state, state.name.lower())
