"""Whether an offered enclave may come: every reason against it at once, and its image."""

from optmigd.config import Peer
from optmigd.daemon.capacity import limit_blocker, memory_blocker, memory_settles
from optmigd.daemon.host import Host, Incoming
from optmigd.daemon.link import Link
from optmigd.daemon.registry import check_enclave_id
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.link import ImageChunk, ImageWanted, Offer

BUSY = "busy"
"""The blocker of a host that receives as many enclaves as it may: it passes, so sources wait."""


def admission_blockers(host: Host, peer: Peer, offer: Offer) -> list[Blocker]:
    """Return every reason why this host does not take the enclave now.

    Raises:
        EnclaveError: the offered id is none.
    """
    check_enclave_id(offer.enclave)
    found = [
        _clash(host, peer, offer),
        limit_blocker(host.name, host.settings.limits, host.registry.live(), offer.memory_bytes),
        _memory_blocker(host, offer),
    ]
    others = _others(host, offer)
    if len(others) >= host.settings.limits.max_incoming:
        text = (
            f"{len(others)} enclaves are on their way to host {host.name}, limits.max_incoming "
            f"there is {host.settings.limits.max_incoming}; try again later"
        )
        found.append(Blocker(BUSY, host.name, text))
    if not host.images.has(offer.image_sha256) and not _image_fits(host, offer):
        found.append(
            Blocker(
                "image-size",
                offer.image_sha256.hex(),
                f"expected an image of at most {host.images.max_image_bytes} bytes, found "
                f"{offer.image_bytes}: raise limits.max_image_bytes on host {host.name}",
            )
        )
    return [blocker for blocker in found if blocker is not None]


async def memory_comes_free(host: Host, offer: Offer) -> None:
    """Wait while this host lacks memory for the enclave, but is getting some back.

    An enclave that goes back where it has just left finds the host giving back what it had.
    """
    await memory_settles(lambda: _memory_blocker(host, offer) is None, host.registry.leaving)


def is_busy(blockers: list[Blocker]) -> bool:
    """Whether one of the blockers is that the destination is full for the moment."""
    return any(blocker.code == BUSY for blocker in blockers)


def only_busy(blockers: list[Blocker]) -> bool:
    """Whether nothing but that stands in the way: the same offer may be accepted later."""
    return bool(blockers) and all(blocker.code == BUSY for blocker in blockers)


def can_rehearse(host: Host, offer: Offer, blockers: list[Blocker]) -> bool:
    """Whether a refused offer can still be played through, to find the shims' blockers as well."""
    return not is_busy(blockers) and (
        host.images.has(offer.image_sha256) or _image_fits(host, offer)
    )


async def fetch_image(host: Host, link: Link, offer: Offer) -> None:
    """Ask the source for the image if it is not here.

    Raises:
        MigrationFailed, ImageInvalid: what arrived is not what was offered.
        ChannelClosed: the link broke.
    """
    if host.images.has(offer.image_sha256):
        return
    await link.send(ImageWanted())
    idle_s = host.settings.limits.link_idle_timeout_s

    async def next_chunk() -> tuple[int, bytes, bool]:
        chunk = await link.expect(ImageChunk, timeout_s=idle_s)
        return chunk.offset, chunk.content, chunk.last

    await host.images.receive(offer.image_sha256, offer.image_bytes, next_chunk)


def _others(host: Host, offer: Offer) -> list[Incoming]:
    return [
        incoming
        for incoming in host.incoming.values()
        if not incoming.owned
        and not incoming.turned_away
        and incoming.record.migration_id != offer.migration_id
    ]


def _memory_blocker(host: Host, offer: Offer) -> Blocker | None:
    promised = [(one.resident_bytes, one.agent_pid) for one in _others(host, offer)]
    return memory_blocker(host.name, offer.resident_bytes, promised)


def _image_fits(host: Host, offer: Offer) -> bool:
    return offer.image_bytes <= host.images.max_image_bytes


def _clash(host: Host, peer: Peer, offer: Offer) -> Blocker | None:
    states = [live.row.state for live in host.registry.live() if live.enclave == offer.enclave]
    existing = host.registry.find(offer.enclave)
    if states:
        text = (
            f"host {host.name} has an enclave {offer.enclave!r} already, which is {states[0]}: "
            "stop it there, or launch yours under another id"
        )
    elif existing is not None and existing.row.generation > offer.generation:
        text = (
            f"host {host.name} knows {offer.enclave!r} in owner generation "
            f"{existing.row.generation}, host {peer.name} offers generation {offer.generation}: "
            "it is another enclave of the same id; launch yours under another id"
        )
    else:
        return None
    return Blocker("enclave-exists", offer.enclave, text)
