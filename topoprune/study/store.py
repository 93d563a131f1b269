"""Records on disk: JSON Lines with checksums, replaced as a whole so that no record is ever half written."""

import itertools
import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from topoprune.files import FileError, FileWarning, checksum, write
from topoprune.study.locks import locked

SCHEMA = 2
"""Layout of the records that are written now. Layout 1, which is read too, has no checksum and stores
searches by generation."""

CURE = "restore the file (git checkout), or delete that line and run again"


class Store:
    """Records in a file, one JSON object a line; of several with the same key the last counts.

    Attributes:
        path: the file; its folder is created with the first record.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = Store(f"{folder}/records.jsonl")
        ...     store.append({"key": "a", "result": 1})
        ...     store.append({"key": "a", "result": 2})
        ...     store.load()
        {'a': {'key': 'a', 'result': 2, 'schema': 2}}
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def load(self) -> dict[str, dict]:
        """Read all records, by key. A torn last line is left out with a warning; a whole one needs no line end.

        Raises:
            files.FileError: a line is damaged, was altered, or has a schema of another version.
        """
        records = {}
        for number, line in self._lines():
            record = self._parse(number, line)
            records[record["key"]] = record
        return records

    def append(self, record: dict) -> None:
        """Add a record (a dict with a "key"), or replace the one of the same key.

        Raises:
            files.FileError: the file is damaged, or cannot be written; it stays as it was.
        """
        with locked(self.path):
            records = self.load()
            records[record["key"]] = {"schema": SCHEMA, **record}
            self._write(records.values())

    def drop(self, keys: set[str]) -> None:
        """Remove the records of these keys, after copying the file to .bak (.bak1, .bak2, ... if that exists).

        Raises:
            files.FileError: as `append`.
        """
        with locked(self.path):
            records = self.load()
            if not keys & records.keys():
                return
            write(self._unused_backup(), self.path.read_bytes())
            self._write(record for key, record in records.items() if key not in keys)

    def require_writable(self) -> None:
        """Try the folder, before hours are spent on a record.

        Raises:
            files.FileError: nothing can be written in it.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"{folder} is a file" if folder.is_file() else error.strerror
            raise FileError(
                f"cannot write {self.path} ({reason}): name a folder that can be written in TOPOPRUNE_RESULTS"
            ) from error

    def _unused_backup(self) -> Path:
        names = (f"{self.path.name}.bak{number or ''}" for number in itertools.count())
        return next(path for path in map(self.path.with_name, names) if not path.exists())

    def _write(self, records: Iterable[dict]) -> None:
        lines = [
            json.dumps(
                record if record["schema"] < 2 else {**record, "sha256": checksum(record)},
                sort_keys=True,
                separators=(",", ":"),
                allow_nan=False,
            )
            for record in records
        ]
        write(self.path, "".join(line + "\n" for line in lines).encode())

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of each whole line; the last one may lack its line end."""
        if not self.path.exists():
            return
        try:
            text = self.path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise FileError(
                f"cannot read {self.path} ({error.strerror}): make it a file that can be read, "
                "or name another folder in TOPOPRUNE_RESULTS"
            ) from error
        *lines, tail = text.split("\n")
        yield from ((i, line) for i, line in enumerate(lines, 1) if line.strip())
        if tail and not _is_torn(tail):
            yield len(lines) + 1, tail
        elif tail:
            warnings.warn(
                f"{self.path}, line {len(lines) + 1} is torn (an interrupted write or a truncated copy): "
                f"its record is left out and will be run again; the {len(lines)} lines before it are kept",
                FileWarning,
                stacklevel=3,
            )

    def _parse(self, number: int, line: str) -> dict:
        """The record in a line, without its checksum."""
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
            schema, key = record["schema"], record["key"]
            if not (isinstance(schema, int) and isinstance(key, str)):
                raise TypeError("a schema is a whole number, a key a text")
            altered = schema >= 2 and record.pop("sha256", None) != checksum(record)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileError(f"{self.path}, line {number} is damaged and holds no record: {CURE}") from error
        if schema not in range(1, SCHEMA + 1):
            raise FileError(
                f"{self.path}, line {number} has schema {schema!r}, this version of topoprune reads 1 to {SCHEMA}: "
                "use the version that wrote it, or move the file away and run again"
            )
        if altered:
            raise FileError(f"{self.path}, line {number} was altered (its checksum differs): {CURE}")
        return record


def _is_torn(tail: str) -> bool:
    """Whether a last line without its end is the beginning of a record, or what a crashed disk leaves of one."""
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        return tail.startswith("{") or not tail.strip("\0")
    return False


def _refuse_constant(constant: str):
    raise ValueError(f"JSON has no {constant}")
