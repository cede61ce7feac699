"""Writing small private files so that a crash leaves either the old one or the new one."""

import errno
import os
import secrets
from pathlib import Path


def make_private_directory(path: Path) -> None:
    """Create `path` and its missing parents with mode 0700; an existing directory is left as is.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    make_private_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file of mode 0600 in one step, on disk when this returns.

    Args:
        path: the file; its directory must exist.
        content: all of it.
        replace: overwrite an existing file; otherwise that is an error.

    Raises:
        FileExistsError: `replace` is false and the file exists; it is untouched.
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
