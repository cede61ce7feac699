"""The vault: a record is there whole or not at all, and an older one leaves nothing."""

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from optmigd.enclave_shim.kept import VAULT_BYTES, make_vault
from optmigd.enclave_shim.vault import SLOT_BYTES, Vault, VaultFull


@pytest.fixture
def memory() -> Iterator[int]:
    fd = make_vault()
    yield fd
    os.close(fd)


def content_of(fd: int) -> bytes:
    return os.pread(fd, VAULT_BYTES, 0)


class Torn(Exception):
    """The writer was killed."""


class TearingMap:
    """Memory whose writer is killed after a number of bytes."""

    def __init__(self, inner: mmap.mmap, left: int) -> None:
        self._inner = inner
        self._left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __getitem__(self, where: slice) -> bytes:
        return self._inner[where]

    def __setitem__(self, where: slice, content: bytes) -> None:
        part = content[: self._left]
        self._inner[where.start : where.start + len(part)] = part
        self._left -= len(part)
        if len(part) < len(content):
            raise Torn


def test_an_empty_vault_has_no_record(memory: int) -> None:
    assert Vault(memory).load() == b""


def test_the_newest_record_is_found_by_the_next_agent(memory: int) -> None:
    vault = Vault(memory)
    for number in range(5):
        vault.store(b"record %d" % number)
        assert vault.load() == Vault(memory).load() == b"record %d" % number


def test_an_older_record_is_wiped(memory: int) -> None:
    vault = Vault(memory)
    vault.store(b"a secret key")
    assert b"a secret key" in content_of(memory)
    vault.store(b"x")
    assert b"secret" not in content_of(memory)


def test_a_write_that_is_torn_anywhere_leaves_the_older_or_the_newer_record(memory: int) -> None:
    older, newer = b"the older record" * 5, b"the newer one" * 4
    outcomes = []
    for killed_after in range(400):
        vault = Vault(memory)
        vault.store(older)
        vault._map = TearingMap(vault._map, killed_after)  # type: ignore[assignment]
        try:
            vault.store(newer)
        except Torn:
            found = Vault(memory)
            outcomes.append(found.load())
            # What the killed one had not come to wipe is wiped when the next one begins.
            seen = content_of(memory)
            assert (older in seen) + (newer in seen) == 1
        else:
            break
    else:
        raise AssertionError("the write was torn at every length")
    assert set(outcomes) == {older, newer}
    assert outcomes == sorted(outcomes, key=lambda found: found == newer)


def test_a_record_that_is_too_long_is_refused_and_the_older_one_stays(memory: int) -> None:
    vault = Vault(memory)
    vault.store(b"older")
    with pytest.raises(VaultFull):
        vault.store(bytes(SLOT_BYTES))
    assert Vault(memory).load() == b"older"


def test_its_size_is_sealed(memory: int) -> None:
    for size_bytes in (0, 2 * VAULT_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size_bytes)
