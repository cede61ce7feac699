"""Test vectors for Noise: the published ones where they are at hand, and the project's own.

`python -m tests.channel.vectors` writes the project's own to `own_vectors.json`. They were made by
this code, so they prove nothing about Noise; they hold the format still, and an implementation in
another language can be tried against them. Their form is that of the published ones.
"""

import json
from pathlib import Path
from typing import Any

from optmigd.protocol.noise import Handshake, Suite, Transport, keypair

PUBLISHED = (
    Path(__file__).resolve().parents[3]
    / "shared/evidence/noise/cacophony-25519-chachapoly-subset.json"
)
OWN = Path(__file__).with_name("own_vectors.json")

# Source: "The Noise Protocol Framework", revision 34, sections 7.5 and 9.4: for each pattern the
# messages, and whose static keys are known beforehand.
PATTERNS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "NN": (("e", "e ee"), False, False),
    "KN": (("e", "e ee se"), True, False),
    "NK": (("e es", "e ee"), False, True),
    "KK": (("e es ss", "e ee se"), True, True),
    "XK": (("e es", "e ee", "s se"), False, True),
    "IK": (("e es s ss", "e ee se"), False, True),
    "XX": (("e", "e ee s es", "s se"), False, False),
    "NNpsk0": (("psk e", "e ee"), False, False),
    "NNpsk2": (("e", "e ee psk"), False, False),
    "XXpsk3": (("e", "e ee s es", "s se psk"), False, False),
    "KKpsk0": (("psk e es ss", "e ee se"), True, True),
    "KKpsk2": (("e es ss", "e ee se psk"), True, True),
}

Vector = dict[str, Any]


def suite_of(name: str) -> Suite:
    """Return the suite of a full protocol name."""
    _, pattern, _, _, hash_name = name.split("_")
    messages, initiator_known, responder_known = PATTERNS[pattern]
    return Suite(name, messages, initiator_known, responder_known, hash_name.lower())


def side(vector: Vector, prefix: str) -> Handshake:
    """Return the initiator (`init`) or the responder (`resp`) of a vector."""

    def field(name: str) -> bytes | None:
        value = vector.get(f"{prefix}_{name}")
        return None if value is None else bytes.fromhex(value)

    static = field("static")
    return Handshake(
        initiator=prefix == "init",
        static=None if static is None else keypair(static),
        ephemeral_private=field("ephemeral") or b"",
        prologue=field("prologue") or b"",
        suite=suite_of(vector["protocol_name"]),
        remote_static=field("remote_static"),
        psks=[bytes.fromhex(psk) for psk in vector.get(f"{prefix}_psks", [])],
    )


def ciphertexts(vector: Vector) -> tuple[list[str], str]:
    """Run a vector on both sides; return what was sent and the handshake hash, in hex.

    Each payload must arrive on the other side, or this raises AssertionError.
    """
    sides: list[Handshake] = [side(vector, "init"), side(vector, "resp")]
    transports: list[Transport] = []
    sent = []
    for index, message in enumerate(vector["messages"]):
        payload = bytes.fromhex(message["payload"])
        writer, reader = index % 2, 1 - index % 2
        if not transports:
            wire = sides[writer].write(payload)
            arrived = sides[reader].read(wire)
        else:
            wire = transports[writer].encrypt(payload)
            arrived = transports[reader].decrypt(wire)
        if arrived != payload:
            raise AssertionError(f"message {index} arrived changed")
        sent.append(wire.hex())
        if not transports and sides[0].complete:
            transports = [half.finish() for half in sides]
    if transports[0].handshake_hash != transports[1].handshake_hash:
        raise AssertionError("the two sides have different handshake hashes")
    return sent, transports[0].handshake_hash.hex()


def load(path: Path) -> list[Vector]:
    """Return the vectors of a file."""
    vectors: list[Vector] = json.loads(path.read_text("utf-8"))["vectors"]
    return vectors


def _own_vectors() -> list[Vector]:
    """Return handshakes of this project's shape: link hellos, evidence, both prologues' lengths."""
    vectors = []
    for number, (prologue, payloads) in enumerate(
        (
            (b"OPTMIGL1", [b"", b"hello from b", b"hello from a", b"offer", b"accepted"]),
            (bytes(range(130)), [b"", b"e" * 3000, b"f" * 3000, b"proposal", b"answer", b"x" * 60]),
            (b"", [b"", b"", b"", b"", b""]),
        )
    ):
        vector: Vector = {"protocol_name": "Noise_XX_25519_ChaChaPoly_BLAKE2b"}
        for offset, prefix in ((1, "init"), (3, "resp")):
            vector[f"{prefix}_prologue"] = prologue.hex()
            vector[f"{prefix}_static"] = bytes([16 * number + offset] * 32).hex()
            vector[f"{prefix}_ephemeral"] = bytes([16 * number + offset + 1] * 32).hex()
        vector["messages"] = [{"payload": payload.hex()} for payload in payloads]
        sent, vector["handshake_hash"] = ciphertexts(vector)
        for message, wire in zip(vector["messages"], sent, strict=True):
            message["ciphertext"] = wire
        vectors.append(vector)
    return vectors


if __name__ == "__main__":
    OWN.write_text(json.dumps({"vectors": _own_vectors()}, indent=1) + "\n", "utf-8")
