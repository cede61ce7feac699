"""A round's key is gone from the sender's memory when the round has ended."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from optmigd.protocol.aeads import wipe
from optmigd.protocol.ciphers import record_key, supported_ciphers


def copies_in_memory(pid: int, sought: list[bytes]) -> list[int]:
    """How often each secret stands in the writable memory of a process of ours."""
    found = [0] * len(sought)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, end = (int(part, 16) for part in span.split("-"))
            if "rw" in rights:
                memory.seek(first)
                content = memory.read(end - first)
                found = [
                    count + content.count(secret)
                    for count, secret in zip(found, sought, strict=True)
                ]
    return found


@pytest.mark.parametrize("cipher", supported_ciphers(aes_in_hardware=True))
def test_the_key_of_an_ended_round_is_nowhere_in_memory(cipher: str) -> None:
    secret = secrets.token_bytes(32)
    keys = [record_key(secret, cipher, round_no, 0) for round_no in (0, 1)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.sealing", cipher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as sender:
        assert sender.stdin is not None and sender.stdout is not None
        try:
            sender.stdin.write(secret)
            found = {}
            for where in ("before", "in the round", "after", "in the next round"):
                sender.stdin.flush()
                assert sender.stdout.readline().decode().strip() == where
                found[where] = copies_in_memory(sender.pid, keys)
                sender.stdin.write(b"!")
        finally:
            sender.kill()
    assert found["in the round"][0] > 0  # it can be found at all
    assert found["after"] == [0, 0]
    assert found["in the next round"][0] == 0
    assert found["in the next round"][1] > 0


def test_a_secret_is_overwritten_in_place() -> None:
    secret = secrets.token_bytes(32)
    view = memoryview(secret)
    wipe(secret)
    assert bytes(view) == bytes(32)
    wipe(b"")
