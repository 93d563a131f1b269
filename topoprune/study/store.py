"""Records on disk (JSON Lines), and the locks that keep writers apart."""

import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from topoprune.files import FileError, FileWarning, json_digest, naming_the_cure, write

SCHEMA = 2
"""Version of a record's layout; older ones are read. Since 2, a line has a checksum, and searches are
stored by column."""


class Store:
    """Records on disk, one JSON object a line, the newest of a key counting.

    Attributes:
        path: the records file; its folder is made when the first record is written.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def load(self) -> dict[str, dict]:
        """Key -> record. A torn last line is reported and left out.

        Raises:
            FileError: a damaged line, or a record of another schema.
        """
        records = {}
        for number, line in self._lines():
            record = self._parse(number, line)
            records[record["key"]] = record
        return records

    def append(self, record: dict) -> None:
        """Add one record (a dict with its "key"), replacing an older one of the same key.

        Raises:
            FileError: the file is damaged, or cannot be written; what it held is kept.
        """
        with locked(self.path):
            records = self.load()
            records[record["key"]] = {"schema": SCHEMA, **record}
            self._write(records.values())

    def drop(self, keys: set[str]) -> None:
        """Leave out the records of `keys`; the file as it was stays beside it, as .bak.

        Raises:
            FileError: as `append`.
        """
        with locked(self.path):
            records = self.load()
            if not keys & records.keys():
                return
            write(self.path.with_name(self.path.name + ".bak"), self.path.read_bytes())
            self._write(record for key, record in records.items() if key not in keys)

    def _write(self, records: Iterable[dict]) -> None:
        lines = [
            json.dumps(
                record if record["schema"] < 2 else {**record, "sha256": json_digest(record)},
                sort_keys=True,
                separators=(",", ":"),
                allow_nan=False,
            )
            for record in records
        ]
        write(self.path, "".join(line + "\n" for line in lines).encode())

    def _lines(self) -> Iterator[tuple[int, str]]:
        if not self.path.exists():
            return
        try:
            text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from error
        *lines, tail = text.split("\n")
        yield from ((i, line) for i, line in enumerate(lines, 1) if line.strip())
        if tail:
            warnings.warn(
                f"{self.path}, line {len(lines) + 1} is torn (an interrupted write or a "
                f"truncated copy): its record is left out and will be run again; the "
                f"{len(lines)} lines before it are kept",
                FileWarning,
                stacklevel=3,
            )

    def _parse(self, number: int, line: str) -> dict:
        try:
            record = json.loads(line, parse_constant=_refuse)
            schema, key = record["schema"], record["key"]
            if not (isinstance(schema, int) and isinstance(key, str)):
                raise TypeError("a schema is a whole number, a key a text")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileError(
                f"{self.path}, line {number} is damaged and is no record: restore the "
                "file (git checkout), or delete that line and run again to make its "
                "record anew"
            ) from error
        if schema not in range(1, SCHEMA + 1):
            raise FileError(
                f"{self.path}, line {number} has schema {schema!r}, this version of "
                f"topoprune reads 1 to {SCHEMA}: use the version that wrote it, or move "
                "the file away and run again"
            )
        if schema >= 2 and record.pop("sha256", None) != json_digest(record):
            raise FileError(
                f"{self.path}, line {number} was altered (its checksum differs): restore "
                "the file (git checkout), or delete that line and run again to make its "
                "record anew"
            )
        return record


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock `path` waiting; a process that dies lets go of it."""
    with naming_the_cure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    _sweep(path)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock of `path` now; one that died holds none, wherever it ran."""
    if not Path(f"{path}.lock").exists():
        return False
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def temporaries(path: Path) -> list[Path]:
    """What killed writers left of a file, or of the files of a folder; whoever locks it removes them."""
    folder, name = (path, r"\..+") if path.is_dir() else (path.parent, rf"\.{re.escape(path.name)}")
    return sorted(file for file in folder.glob(".*") if re.fullmatch(name + r"\.[a-z0-9_]{8}", file.name))


def _sweep(path: Path) -> None:
    """Remove what killed writers left; to be called by who holds the lock, so that none is alive."""
    for file in temporaries(path):
        with contextlib.suppress(OSError):
            file.unlink()
