"""A source's shim in a process of its own, as far as keys go, for looking into its memory.

It speaks in lines of hexadecimal digits: first its two private keys, disguised, then the handshake
with the one who looks. Then it goes through what a source does with its keys, stops at each step,
says so, and goes on when it reads a line.
"""

import os
import sys

from optmigd.protocol.records import StreamSealer
from optmigd.protocol.session import ReleaseToken, SessionBinding, SessionChannel
from optmigd.protocol.wiping import wipe

MIGRATION = b"m" * 16
BINDING = SessionBinding(MIGRATION, b"a" * 32, b"b" * 32, b"p" * 32)
STREAMS = 2
CIPHER = "aes-256-gcm"
DISGUISE = int.from_bytes(b"\x5a" * 32, "big")


def say(line: str) -> None:
    """Write a line."""
    print(line, flush=True)


def stop(where: str) -> None:
    """Say where it is, and wait."""
    say(where)
    sys.stdin.readline()


def main() -> None:
    """Go from the handshake to the release, and to the confirmation."""
    private = [os.urandom(32), os.urandom(32)]
    for key in private:
        # As a number it has other bytes in memory.
        say(f"{int.from_bytes(key, 'big') ^ DISGUISE:064x}")
    channel = SessionChannel(
        role="source",
        ephemeral_private=private[0],
        static_private=private[1],
        binding=BINDING,
        make_evidence=lambda data: data,
        appraise=lambda evidence, data: None,
    )
    for key in private:
        wipe(key)
    stop("begun")
    say(channel.start()[0].hex())
    _, answers = channel.receive(bytes.fromhex(sys.stdin.readline()))
    say(answers[0].hex())
    stop("established")
    keys = channel.export_keys()
    streams = [StreamSealer(keys, MIGRATION, index, CIPHER) for index in range(STREAMS)]
    keys.forget()
    stop("streams made")
    seals = channel.handoff_seals()
    channel.seal_token(ReleaseToken(MIGRATION, 2, b"i" * 32, b"d" * 32))
    channel.close()
    stop("released")
    seals.forget()
    stop("confirmed")
    assert len(streams) == STREAMS


if __name__ == "__main__":
    main()
