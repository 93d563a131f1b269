"""Keep processes apart that share a folder, and clean up after those that were killed."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from topoprune.files import explain_write_errors


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; wait for any other process that holds it.

    The system releases the lock when its process ends, however it ends. Temporary files that killed
    processes left are removed.

    Raises:
        files.FileError: the lock cannot be written (disk full, read-only).
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link and its target have one lock
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    for file in leftovers(path):  # nobody else writes here now
        with contextlib.suppress(OSError):
            file.unlink()
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of `path`. Nothing is written, so a read-only folder will do."""
    try:
        handle = os.open(f"{path.resolve()}.lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):  # no lock, or no folder that could hold one
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)  # releases what was locked
    return False


def leftovers(path: Path) -> list[Path]:
    """Temporary files that killed processes left: of one file, or of all files in a folder."""
    folder, name = (path, r"\..+") if path.is_dir() else (path.parent, rf"\.{re.escape(path.name)}")
    return sorted(file for file in folder.glob(".*") if re.fullmatch(name + r"\.[a-z0-9_]{8}", file.name))
