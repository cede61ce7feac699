"""Which versions of a protocol two sides can speak, and the one they choose.

Each side states a window, and the highest version in both windows is spoken. A mismatch names both
windows, so that the operator sees at once which host to upgrade.
"""

from dataclasses import dataclass

from optmigd.protocol.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch

HIGHEST_POSSIBLE = 0xFFFF


@dataclass(frozen=True)
class Window:
    """The versions from `low` to `high`, both included.

    Raises:
        LocalProtocolError: the window is empty or outside 1 to 65535.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= HIGHEST_POSSIBLE:
            raise LocalProtocolError(f"{self.low} to {self.high} is no window of versions")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def as_pair(self) -> tuple[int, int]:
        """Return the wire form."""
        return self.low, self.high


def window_from_peer(pair: tuple[int, int]) -> Window:
    """Read a window that a peer sent.

    Raises:
        RemoteProtocolError: it is no window.
    """
    low, high = pair
    if not 1 <= low <= high <= HIGHEST_POSSIBLE:
        raise RemoteProtocolError("the peer's window of versions is empty or out of range")
    return Window(low, high)


def negotiate(ours: Window, theirs: Window) -> int:
    """Return the highest version that both windows hold.

    Raises:
        VersionMismatch: there is none; the message and the fields name both windows.
    """
    version = min(ours.high, theirs.high)
    if version < max(ours.low, theirs.low):
        older = "this host" if ours.high < theirs.low else "the other host"
        raise VersionMismatch(
            f"no protocol version in common: this host speaks {ours}, the other host speaks "
            f"{theirs}; upgrade {older}",
            ours=ours.as_pair(),
            theirs=theirs.as_pair(),
        )
    return version


LINK_VERSIONS = Window(1, 1)
SESSION_VERSIONS = Window(3, 3)
