"""Two threads decode the first message of a class at once, for many classes; run as a program."""

import sys
import threading
from typing import Annotated, Any

import msgspec

from optmigd.protocol.wire import decode

CLASSES = 500
CONTENT = msgspec.msgpack.encode({"count": 1, "parts": [{"at": 1, "what": b"1"}], "name": "one"})


def new_class(number: int) -> type[Any]:
    """A class of messages that nothing has decoded yet."""
    bounded = Annotated[bytes, msgspec.Meta(max_length=64)]
    at = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
    part = msgspec.defstruct(f"Part{number}", [("at", at), ("what", bounded)])
    fields = [("count", Annotated[int, msgspec.Meta(ge=0)]), ("parts", list[part]), ("name", str)]  # type: ignore[valid-type]
    return msgspec.defstruct(f"Whole{number}", fields)


def main() -> int:
    """Return 0 if every thread has decoded every message."""
    sys.setswitchinterval(1e-6)
    decoded: list[Any] = []
    for number in range(CLASSES):
        type_, meet = new_class(number), threading.Barrier(2)

        def decode_it(type_: type[Any] = type_, meet: threading.Barrier = meet) -> None:
            meet.wait()
            decoded.append(decode(CONTENT, type_))

        threads = [threading.Thread(target=decode_it) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return 0 if len(decoded) == 2 * CLASSES else 1


if __name__ == "__main__":
    sys.exit(main())
