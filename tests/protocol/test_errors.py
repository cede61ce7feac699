"""Errors keep their class, code and fields across a wire; versions name both windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.protocol import errors
from optmigd.protocol.blockers import BLOCKER_CODES, Blocker, blockers_from_fields
from optmigd.protocol.errors import (
    LocalProtocolError,
    MigrationBlocked,
    OptmigError,
    RemoteProtocolError,
    VersionMismatch,
    from_wire,
    to_wire,
)
from optmigd.protocol.versions import Window, negotiate, window_from_peer
from optmigd.protocol.wire import pack, unpack

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, OptmigError)
]


def sent(error: OptmigError) -> OptmigError:
    """Send an error through msgpack."""
    wire = unpack(pack(to_wire(error)))
    assert isinstance(wire, dict)
    return from_wire(wire["code"], wire["message"], wire["fields"])


def test_every_code_is_used_once() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(codes) > 25
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_crosses_a_wire(cls: type[OptmigError]) -> None:
    error = sent(cls("the reason", path="/x", size=5))
    assert type(error) is cls
    assert (error.code, error.message, str(error)) == (cls.code, "the reason", "the reason")
    assert error.fields == {"path": "/x", "size": 5}


def test_blockers_cross_a_wire() -> None:
    blockers = [Blocker("memory", "4 GiB", "too little"), Blocker("socket", "fd 3", "held")]
    error = sent(MigrationBlocked("refused", blockers=blockers))
    assert isinstance(error, MigrationBlocked)
    assert error.blockers == blockers


def test_an_unknown_code_is_kept() -> None:
    error = from_wire("from-the-future", "hm", {"message": 1, "self": 2})
    assert type(error) is OptmigError
    assert error.code == "from-the-future"
    assert error.fields == {"message": 1, "self": 2}
    assert OptmigError("x").code == "error"


def test_what_is_no_blocker_is_left_out() -> None:
    good = Blocker("memory", "x", "y")
    assert blockers_from_fields([{"code": 1}, "x", good.as_fields(), good]) == [good, good]
    assert blockers_from_fields("nonsense") == []


def test_the_blocker_table_reads_as_sentences() -> None:
    assert list(BLOCKER_CODES) == sorted(BLOCKER_CODES)
    assert all(text and not text.endswith(".") for text in BLOCKER_CODES.values())


windows = st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda pair: Window(*sorted(pair)))


@given(windows, windows)
def test_the_highest_common_version_is_chosen(ours: Window, theirs: Window) -> None:
    common = set(range(ours.low, ours.high + 1)) & set(range(theirs.low, theirs.high + 1))
    if common:
        assert negotiate(ours, theirs) == negotiate(theirs, ours) == max(common)
        return
    with pytest.raises(VersionMismatch) as caught:
        negotiate(ours, theirs)
    assert caught.value.fields == {"ours": ours.as_pair(), "theirs": theirs.as_pair()}
    assert str(ours) in caught.value.message
    assert str(theirs) in caught.value.message


def test_a_mismatch_says_whom_to_upgrade() -> None:
    with pytest.raises(VersionMismatch, match="speaks 1, the other host speaks 2 to 3; upgrade th"):
        negotiate(Window(1, 1), Window(2, 3))
    with pytest.raises(VersionMismatch, match="upgrade the other host"):
        negotiate(Window(2, 3), Window(1, 1))


@pytest.mark.parametrize("pair", [(0, 1), (2, 1), (1, 65536)])
def test_a_window_that_is_none_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(LocalProtocolError):
        Window(*pair)
    with pytest.raises(RemoteProtocolError):
        window_from_peer(pair)
