"""The book of peers: what `host add` and `host remove` do, and what they refuse."""

import base64
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.config import (
    Peer,
    PeerBook,
    PeerSettings,
    format_address,
    format_key,
    parse_address,
    parse_key,
)
from optmigd.protocol.errors import ConfigError, UnknownHost


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "peers.toml"


def test_an_added_peer_is_found_and_kept(file: Path) -> None:
    book = PeerBook.load(file)
    assert book.peers == ()
    book.add("b", "192.0.2.2:7411", key(2))
    book.add("a", "[2001:db8::1]:7411", key(1))
    for each in (book, PeerBook.load(file)):
        assert [peer.name for peer in each.peers] == ["a", "b"]
        assert each.by_name("b") == Peer("b", "192.0.2.2", 7411, b"\x02" * 32)
        found = each.by_key(b"\x01" * 32)
        assert found is not None
        assert found.address == "[2001:db8::1]:7411"
        assert each.by_key(b"\x03" * 32) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_adding_a_name_again_replaces_it(file: Path) -> None:
    book = PeerBook.load(file)
    book.add("b", "h:1", key(2))
    book.add("b", "h:2", key(3))
    assert book.by_key(b"\x02" * 32) is None
    assert PeerBook.load(file).peers == (Peer("b", "h", 2, b"\x03" * 32),)


def test_a_removed_peer_is_gone_and_stays_so(file: Path) -> None:
    book = PeerBook.load(file)
    book.add("b", "h:1", key(2))
    assert book.remove("b").name == "b"
    for each in (book, PeerBook.load(file)):
        with pytest.raises(UnknownHost, match="known peers: none"):
            each.by_name("b")
        assert each.by_key(b"\x02" * 32) is None


def test_an_unknown_name_says_which_are_known(file: Path) -> None:
    book = PeerBook.load(file)
    book.add("b", "h:1", key(2))
    with pytest.raises(UnknownHost, match=r"no peer is called 'c'; known peers: b\.") as refused:
        book.remove("c")
    assert refused.value.fields == {"host": "c"}


def test_a_key_stands_for_one_peer(file: Path) -> None:
    book = PeerBook.load(file)
    book.add("b", "h:1", key(2))
    with pytest.raises(ConfigError, match="a key stands for one peer"):
        book.add("c", "h:2", key(2))
    assert [peer.name for peer in PeerBook.load(file).peers] == ["b"]


@pytest.mark.parametrize(
    ("name", "address", "text"),
    [
        ("", "h:1", key(1)),
        ("a b", "h:1", key(1)),
        ("x" * 64, "h:1", key(1)),
        ("a\n", "h:1", key(1)),
        ('a"', "h:1", key(1)),
        ("a", "h", key(1)),
        ("a", "h:0", key(1)),
        ("a", "h:65536", key(1)),
        ("a", "2001:db8::1:7411", key(1)),
        ("a", 'h"\n:1', key(1)),
        ("a", "h:1", key(1)[:-4]),
        ("a", "h:1", "SHA256:" + key(1)),
        ("a", "h:1", ""),
    ],
)
def test_a_malformed_peer_is_refused_and_nothing_is_kept(
    file: Path, name: str, address: str, text: str
) -> None:
    book = PeerBook.load(file)
    with pytest.raises(ConfigError):
        book.add(name, address, text)
    assert book.peers == ()
    assert not file.exists()


def test_peers_of_the_configuration_cannot_be_changed_by_command(file: Path) -> None:
    fixed = PeerSettings(name="b", address="h:1", key=key(2))
    book = PeerBook.load(file, [fixed])
    with pytest.raises(ConfigError, match="configuration file"):
        book.remove("b")
    with pytest.raises(ConfigError, match="pinned already"):
        book.add("b", "h:1", key(3))
    book.add("c", "h:3", key(3))
    assert [peer.name for peer in PeerBook.load(file, [fixed]).peers] == ["b", "c"]
    assert [peer.name for peer in PeerBook.load(file).peers] == ["c"]


def test_a_peer_in_both_places_counts_once_if_both_agree(file: Path) -> None:
    PeerBook.load(file).add("b", "h:1", key(2))
    same = PeerSettings(name="b", address="h:1", key=key(2))
    assert len(PeerBook.load(file, [same]).peers) == 1
    other = PeerSettings(name="b", address="h:1", key=key(9))
    with pytest.raises(ConfigError, match="pinned already"):
        PeerBook.load(file, [other])


def test_two_peers_of_one_name_in_the_configuration_are_refused(file: Path) -> None:
    fixed = [PeerSettings(name="b", address="h:1", key=key(number)) for number in (1, 2)]
    with pytest.raises(ConfigError, match="a name stands for one peer"):
        PeerBook.load(file, fixed)


@pytest.mark.parametrize(
    "content",
    [
        "[[peers]\n",
        "peers = 3\n",
        '[[peers]]\nname = "b"\n',
        "other = 1\n",
        f'[[peers]]\nname = "b"\naddress = "h"\nkey = "{key(1)}"\n',
        "\u0000",
    ],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"peers\.toml: "):
        PeerBook.load(file)
    assert file.read_text() == content


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    book = PeerBook(tmp_path / "file" / "peers.toml", [], [])
    with pytest.raises(ConfigError, match="cannot be kept"):
        book.add("b", "h:1", key(2))
    assert book.peers == ()


@given(st.ip_addresses().map(str), st.integers(min_value=1, max_value=65535))
def test_a_written_address_is_read_back(host: str, port: int) -> None:
    assert parse_address(format_address(host, port)) == (host, port)


@given(st.binary(min_size=32, max_size=32))
def test_a_written_key_is_read_back(content: bytes) -> None:
    assert parse_key(format_key(content)) == content
    assert len(format_key(content)) == 44


@given(st.text())
def test_no_text_breaks_the_readers(text: str) -> None:
    for parse in (parse_address, parse_key):
        with suppress(ConfigError):
            parse(text)
