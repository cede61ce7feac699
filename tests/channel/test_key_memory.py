"""Keys are gone from a shim's memory as soon as they have done their work."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from optmigd.protocol import session
from optmigd.protocol.ciphers import RoundKeys, supported_ciphers
from optmigd.protocol.noise import Handshake, Transport
from optmigd.protocol.wiping import own_copy, wipe
from tests.support.attested_source import BINDING, DISGUISE


def copies_in_memory(pid: int, sought: list[bytes]) -> list[int]:
    """How often each secret stands in the writable memory of a process of ours.

    The stack is left out: a library's function leaves there what it worked with, until another one
    happens to need the place. docs/attacks.md says so.
    """
    found = [0] * len(sought)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, end = (int(part, 16) for part in span.split("-"))
            if "rw" in rights and "[stack]" not in line:
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
    ratchet = RoundKeys(secret, cipher, 0)
    first_secret = own_copy(ratchet._secret)
    keys = [ratchet.next(), ratchet.next(), first_secret]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.sealing", cipher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as sender:
        assert sender.stdin is not None and sender.stdout is not None
        try:
            sender.stdin.write(secret)
            found: dict[str, list[int]] = {}
            for where in ("before", "in the round", "after", "in the next round"):
                if found:
                    sender.stdin.write(b"!")
                sender.stdin.flush()
                assert sender.stdout.readline().decode().strip() == where
                found[where] = copies_in_memory(sender.pid, keys)
        finally:
            sender.kill()
    assert found["before"][2] > 0 and found["in the round"][0] > 0  # they can be found at all
    assert found["in the round"][2] == 0
    assert found["after"] == [0, 0, 0]
    assert found["in the next round"][0] == found["in the next round"][2] == 0
    assert found["in the next round"][1] > 0


def test_a_secret_is_overwritten_in_place() -> None:
    secret = secrets.token_bytes(32)
    view = memoryview(secret)
    wipe(secret)
    assert bytes(view) == bytes(32)
    wipe(b"")


class Observed(Handshake):
    """A handshake that tells of the keys it ends with."""

    keys: dict[str, bytes]

    def finish(self) -> Transport:
        """Consume it, and keep copies."""
        transport = super().finish()
        type(self).keys = {
            "to the peer": own_copy(transport.recv._key),
            "from the peer": own_copy(transport.send._key),
            "exporter": own_copy(transport._exporter_secret),
            "records": transport.export(b"records"),
            "token": transport.export(b"token"),
            "confirmation": transport.export(b"resumed"),
        }
        return transport


CHANCES = 4
# What may still be found after each step of a source; everything else is gone.
KEPT = {
    "begun": {"ephemeral", "static"},
    "established": {"to the peer", "from the peer", "records", "token", "confirmation"},
    "streams made": {"to the peer", "from the peer", "token", "confirmation"},
    "released": {"token", "confirmation"},
    "confirmed": set(),
}


def test_a_source_keeps_each_secret_for_as_long_as_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library may leave a copy in freed memory, by chance: what is kept is found every time."""
    monkeypatch.setattr(session, "Handshake", Observed)
    found = secrets_found()
    for _ in range(CHANCES):
        if found == KEPT:
            break
        again = secrets_found()
        found = {step: names & again[step] for step, names in found.items()}
    assert found == KEPT


def secrets_found() -> dict[str, set[str]]:
    """What is found in the memory of a new source after each step."""
    destination = session.SessionChannel(
        role="destination",
        ephemeral_private=secrets.token_bytes(32),
        static_private=secrets.token_bytes(32),
        binding=BINDING,
        make_evidence=lambda data: data,
        appraise=lambda evidence, data: None,
    )
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.attested_source"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as source:
        assert source.stdin is not None and source.stdout is not None
        found: dict[str, set[str]] = {}
        known: dict[str, bytes] = {}
        try:
            for name in ("ephemeral", "static"):
                disguised = int(source.stdout.readline(), 16)
                known[name] = (disguised ^ DISGUISE).to_bytes(32, "big")
            for step in KEPT:
                if found:
                    print(file=source.stdin, flush=True)
                if step == "established":
                    _, answers = destination.receive(bytes.fromhex(source.stdout.readline()))
                    print(answers[0].hex(), file=source.stdin, flush=True)
                    destination.receive(bytes.fromhex(source.stdout.readline()))
                    known |= Observed.keys
                assert source.stdout.readline().strip() == step
                copies = copies_in_memory(source.pid, list(known.values()))
                found[step] = {name for name, n in zip(known, copies, strict=True) if n}
        finally:
            source.kill()
    return found
