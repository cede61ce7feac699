"""Reading parameters that somebody else wrote.

Agents, clients and peers send msgpack maps; every access to them goes through here, so a missing or
mistyped value is a clear refusal and never a crash of the daemon.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import OptmigError, RemoteProtocolError

T = TypeVar("T")

Params = dict[str, Any]


def mapping(value: object, name: str) -> Params:
    """Return `value` if it is a map with text keys.

    Raises:
        RemoteProtocolError: it is something else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError(f"expected a map for {name!r}, found {type(value).__name__}")
    return value


def param(params: Mapping[str, Any], name: str, type_: type[T], default: T | None = None) -> T:
    """Return one parameter of the expected type.

    Args:
        params: what was received.
        name: the parameter.
        type_: its type; an int passes for a float, a bool never for a number.
        default: what an absent or nil parameter means; None: it must be there.

    Raises:
        RemoteProtocolError: it is absent or of another type.
    """
    value = params.get(name)
    if value is None and default is not None:
        return default
    if type_ is float and type(value) is int:
        value = float(value)
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
        raise RemoteProtocolError(
            f"expected {type_.__name__} for the parameter {name!r}, found {type(value).__name__}"
        )
    return value


def texts(params: Mapping[str, Any], name: str) -> list[str]:
    """Return a parameter that is a list of texts; absent means empty.

    Raises:
        RemoteProtocolError: it is something else.
    """
    value = param(params, name, list, [])
    if not all(isinstance(item, str) for item in value):
        raise RemoteProtocolError(f"expected a list of texts for the parameter {name!r}")
    return value


def refuse_unknown(params: Mapping[str, Any], known: frozenset[str], method: str) -> None:
    """Refuse parameters that a method does not have.

    Raises:
        RemoteProtocolError: naming them and those it has.
    """
    unknown = sorted(set(params) - known)
    if unknown:
        raise RemoteProtocolError(
            f"{method!r} knows the parameters {', '.join(sorted(known)) or '(none)'}, found also "
            f"{', '.join(unknown)}"
        )


def merged(*lists: list[Blocker]) -> list[Blocker]:
    """Join lists of blockers; one that both sides report counts once."""
    by_subject: dict[tuple[str, str], Blocker] = {}
    for blocker in (blocker for blockers in lists for blocker in blockers):
        by_subject.setdefault((blocker.code, blocker.subject), blocker)
    return list(by_subject.values())


def internal_error() -> OptmigError:
    """Return the error that stands for a mistake of the daemon's own, which its log explains."""
    error = OptmigError("the daemon made a mistake: its log has the details, please report it")
    error.code = "internal"
    return error
