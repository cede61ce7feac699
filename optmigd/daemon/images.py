"""The images that enclaves of this host were started from, stored by content.

An image is named by its SHA-256. The destination of a migration asks for it only when it has no
file of that name, and a file gets its name only after its digest was checked: a half-received or
altered image can never be started.
"""

import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import trio

from optmigd.protocol.errors import ImageInvalid, MigrationFailed

NextChunk = Callable[[], Awaitable[tuple[int, bytes, bool]]]

CHUNK_BYTES = 48 * 1024
"""Fits, with its message, into one Noise transport message of 65535 bytes."""

# Source: elf(5); e_ident, e_type and e_machine of a little-endian 64-bit x86-64 executable.
_ELF_IDENT = b"\x7fELF\x02\x01\x01"
_ELF_TYPE_AND_MACHINE = (b"\x02\x00\x3e\x00", 16)


class ImageStore:
    """STATE_DIR/images: read-only files named by their SHA-256."""

    def __init__(self, directory: Path, max_image_bytes: int) -> None:
        """Use an existing directory; no image may be larger than `max_image_bytes`."""
        self._directory = directory
        self.max_image_bytes = max_image_bytes

    def path(self, sha256: bytes) -> Path:
        """Return where the image of that digest is, or would be."""
        return self._directory / sha256.hex()

    def has(self, sha256: bytes) -> bool:
        """Say whether the image is here."""
        return self.path(sha256).is_file()

    async def add(self, source: Path) -> tuple[bytes, int]:
        """Copy an image into the store.

        Returns:
            Its SHA-256 and its size in bytes.

        Raises:
            ImageInvalid: absent, unreadable, too large, or no static x86-64 executable.
        """
        return await trio.to_thread.run_sync(self._copy_in, source)

    async def receive(self, sha256: bytes, size_bytes: int, next_chunk: NextChunk) -> None:
        """Store an image that arrives as (offset, content, last) chunks, in order.

        Raises:
            MigrationFailed: a chunk is out of place, the size or the digest is not the one
                announced. Nothing is kept then, and nothing if this is cancelled.
        """
        hashed = hashlib.sha256()
        received_bytes = 0
        file, temporary = self._open_temporary()
        try:
            with file:
                last = False
                while not last:
                    offset, content, last = await next_chunk()
                    if offset != received_bytes or received_bytes + len(content) > size_bytes:
                        raise MigrationFailed(
                            f"expected image bytes from {received_bytes} of {size_bytes}, found "
                            f"{len(content)} bytes at {offset}: the peer does not keep to the "
                            "protocol"
                        )
                    hashed.update(content)
                    await trio.to_thread.run_sync(file.write, content)
                    received_bytes += len(content)
                await trio.to_thread.run_sync(file.flush)
            if received_bytes != size_bytes or hashed.digest() != sha256:
                raise MigrationFailed(
                    f"expected an image of {size_bytes} bytes with SHA-256 {sha256.hex()}, found "
                    f"{received_bytes} bytes with {hashed.hexdigest()}: the image was altered"
                )
            self._check_header(Path(temporary))
            self._keep(temporary, sha256)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    async def read(self, sha256: bytes, offset: int) -> bytes:
        """Return CHUNK_BYTES of the image from `offset`, for a peer that lacks it."""
        async with await trio.open_file(self.path(sha256), "rb") as file:
            await file.seek(offset)
            return await file.read(CHUNK_BYTES)

    def remove_unused(self, used: Iterable[bytes]) -> None:
        """Remove every image that is not in `used`, and what a crash left half-written."""
        names = {sha256.hex() for sha256 in used}
        for path in self._directory.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _copy_in(self, source: Path) -> tuple[bytes, int]:
        hashed = hashlib.sha256()
        size_bytes = 0
        if not source.is_absolute() or not source.is_file():
            raise ImageInvalid(
                f"expected the absolute path of an image, there is no file {source}",
                image=str(source),
            )
        try:
            with open(source, "rb") as original:
                self._check_header(source)
                file, temporary = self._open_temporary()
                try:
                    with file:
                        while block := original.read(1 << 20):
                            size_bytes += len(block)
                            if size_bytes > self.max_image_bytes:
                                raise ImageInvalid(
                                    f"expected an image of at most {self.max_image_bytes} bytes, "
                                    f"{source} is larger: raise limits.max_image_bytes",
                                    image=str(source),
                                )
                            hashed.update(block)
                            file.write(block)
                    self._keep(temporary, hashed.digest())
                except BaseException:
                    with suppress(FileNotFoundError):
                        os.unlink(temporary)
                    raise
        except OSError as error:
            raise ImageInvalid(
                f"the image {source} cannot be read: {error.strerror}", image=str(source)
            ) from error
        return hashed.digest(), size_bytes

    def _check_header(self, path: Path) -> None:
        with open(path, "rb") as file:
            header = file.read(64)
        expected, offset = _ELF_TYPE_AND_MACHINE
        if not header.startswith(_ELF_IDENT) or header[offset : offset + 4] != expected:
            raise ImageInvalid(
                f"expected a static x86-64 ELF executable, {path} is none: build it with optmig-cc",
                image=str(path),
            )

    def _open_temporary(self) -> tuple[BinaryIO, str]:
        descriptor, path = tempfile.mkstemp(dir=self._directory, prefix=".partial-")
        return os.fdopen(descriptor, "wb"), path

    def _keep(self, temporary: str, sha256: bytes) -> None:
        # Enclaves may run as another user than the daemon: everyone may read and execute.
        os.chmod(temporary, 0o555)  # noqa: S103
        os.replace(temporary, self.path(sha256))
