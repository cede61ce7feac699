"""The order in which ciphers are proposed."""

from collections.abc import Iterator

import pytest

from optmigd.enclave_shim import cipher_speed
from optmigd.protocol.ciphers import supported_ciphers


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    cipher_speed.fastest_first.cache_clear()
    yield
    cipher_speed.fastest_first.cache_clear()


def test_every_cipher_is_measured_and_none_lost() -> None:
    names = supported_ciphers(aes_in_hardware=True)
    assert sorted(cipher_speed.fastest_first(tuple(names))) == sorted(names)


def test_the_order_follows_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    names = supported_ciphers(aes_in_hardware=True)
    slow_first = {name: -float(index) for index, name in enumerate(names)}
    monkeypatch.setattr(cipher_speed, "_seconds", lambda name, content: slow_first[name])
    assert cipher_speed.fastest_first(tuple(names)) == names[::-1]
