"""Files that are never half written: records (JSON Lines) and checkpoints (safetensors).

A file is written under a temporary name and moved into place; a second writer waits for the first.
Nothing that is read back can run code: JSON and safetensors only.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save

SCHEMA = 2
"""Version of a record's layout; older ones are read. Since 2, a line has a checksum, and searches are
stored by column."""


class StoreError(RuntimeError):
    """A file cannot be read or written; the message names it and the cure."""


class StoreWarning(UserWarning):
    """A damaged or foreign file was set aside; nothing else was lost."""


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
            StoreError: a damaged line, or a record of another schema.
        """
        records = {}
        for number, line in self._lines():
            record = self._parse(number, line)
            records[record["key"]] = record
        return records

    def append(self, record: dict) -> None:
        """Add one record (a dict with its "key"), replacing an older one of the same key.

        Raises:
            StoreError: the file is damaged, or cannot be written; what it held is kept.
        """
        with locked(self.path):
            records = self.load()
            records[record["key"]] = {"schema": SCHEMA, **record}
            self._write(records.values())

    def drop(self, keys: set[str]) -> None:
        """Leave out the records of `keys`; the file as it was stays beside it, as .bak.

        Raises:
            StoreError: as `append`.
        """
        with locked(self.path):
            records = self.load()
            if not keys & records.keys():
                return
            write(self.path.with_name(self.path.name + ".bak"), self.path.read_bytes())
            self._write(record for key, record in records.items() if key not in keys)

    def _write(self, records: Iterable[dict]) -> None:
        lines = [json.dumps(record if record["schema"] < 2 else {**record, "sha256": _digest(record)},
                            sort_keys=True, separators=(",", ":"), allow_nan=False) for record in records]
        write(self.path, "".join(line + "\n" for line in lines).encode())

    def _lines(self) -> Iterator[tuple[int, str]]:
        if not self.path.exists():
            return
        try:
            text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        *lines, tail = text.split("\n")
        yield from ((i, line) for i, line in enumerate(lines, 1) if line.strip())
        if tail:
            warnings.warn(f"{self.path}, line {len(lines) + 1} is torn (an interrupted write or a "
                          f"truncated copy): its record is left out and will be run again; the "
                          f"{len(lines)} lines before it are kept", StoreWarning, stacklevel=3)

    def _parse(self, number: int, line: str) -> dict:
        try:
            record = json.loads(line, parse_constant=_refuse)
            schema, key = record["schema"], record["key"]
            if not (isinstance(schema, int) and isinstance(key, str)):
                raise TypeError("a schema is a whole number, a key a text")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(f"{self.path}, line {number} is damaged and is no record: restore the "
                             "file (git checkout), or delete that line and run again to make its "
                             "record anew") from error
        if schema not in range(1, SCHEMA + 1):
            raise StoreError(f"{self.path}, line {number} has schema {schema!r}, this version of "
                             f"topoprune reads 1 to {SCHEMA}: use the version that wrote it, or move "
                             "the file away and run again")
        if schema >= 2 and record.pop("sha256", None) != _digest(record):
            raise StoreError(f"{self.path}, line {number} was altered (its checksum differs): restore "
                             "the file (git checkout), or delete that line and run again to make its "
                             "record anew")
        return record


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")


def canonical(value) -> str:
    """The one JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key(value) -> str:
    """Short name of `value`: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock `path` waiting; a process that dies lets go of it."""
    with _writing(path):
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


def write(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is either the old or the new one.

    Raises:
        StoreError: the disk is full or read-only; the old file is untouched.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _settle(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _settle(folder: Path) -> None:
    """Have a folder's new names on the disk, before anything older is deleted in their favour."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write tensors and JSON metadata as safetensors, with a checksum of both."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = canonical(metadata)
    write(path, save(plain, {"metadata": text, "sha256": _checksum(plain, text)}))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and metadata of a file made by `write_tensors`.

    Raises:
        StoreError: missing, truncated, altered, or not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(path)
        text = header["metadata"]
        metadata = json.loads(text)
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: name a checkpoint that topoprune wrote") from error
    except (OSError, KeyError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path} is no checkpoint of topoprune, or is truncated ({error}): delete "
                         "it and run again") from error
    if header.get("sha256") != _checksum(tensors, text) or not isinstance(metadata, dict):
        raise StoreError(f"{path} was altered (its checksum differs): delete it and run again")
    return tensors, metadata


def resume_tensors(path: Path, identity: str) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The checkpoint at `path` if it belongs to `identity`; any other is set aside by name."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except StoreError as error:
        return set_aside(path, str(error))
    if metadata.get("identity") != identity:
        return set_aside(path, f"{path} belongs to another run")
    return tensors, metadata


def write_json(path: Path, identity, value) -> None:
    """Write a JSON value with the identity of what it belongs to and a checksum of both.

    Raises:
        StoreError: as `write`.
    """
    content = {"identity": identity, "value": value}
    text = json.dumps({**content, "sha256": _digest(content)}, allow_nan=False)  # in the given order
    write(path, text.encode())


def read_json(path: Path, identity):
    """The value of a file that `write_json` wrote for `identity`.

    Raises:
        StoreError: as `check_json`, or of another identity.
    """
    found, value = check_json(path)
    if found != identity:
        raise StoreError(f"{path} belongs to another run: {_other(found, identity)}")
    return value


def check_json(path: Path) -> tuple:
    """Identity and value of a file that `write_json` wrote.

    Raises:
        StoreError: missing, truncated, altered, or not such a file.
    """
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("sha256")
        found, value = content["identity"], content["value"]
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: run again to make it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is no file of topoprune, or is truncated ({error!r})") from error
    if checksum != _digest(content):
        raise StoreError(f"{path} was altered (its checksum differs)")
    return found, value


def resume_json(path: Path, identity):
    """The value at `path` if it is sound and belongs to `identity`, else None: it is set aside by name."""
    if not path.exists():
        return None
    try:
        return read_json(path, identity)
    except StoreError as error:
        return set_aside(path, str(error))


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that cannot be continued from, and say so."""
    aside = path.with_name(path.name + ".refused")
    os.replace(path, aside)
    warnings.warn(f"{reason}; set aside as {aside.name}, starting over", StoreWarning, stacklevel=3)


def _sweep(path: Path) -> None:
    """Remove what killed writers left; to be called by who holds the lock, so that none is alive."""
    for file in temporaries(path):
        with contextlib.suppress(OSError):
            file.unlink()


def _digest(value) -> str:
    try:
        return hashlib.sha256(canonical(value).encode()).hexdigest()
    except ValueError:  # NaN, which JSON has not and `canonical` refuses
        return "no JSON"


def _other(found, identity) -> str:
    """The first field in which two identities differ."""
    if not (isinstance(found, dict) and isinstance(identity, dict)):
        return f"it is of {found}, not of {identity}"
    name = next(name for name in [*identity, *found] if found.get(name) != identity.get(name))
    return f"its {name} is {found.get(name)}, not {identity.get(name)}"


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Short identity of some tensors: their names, types, shapes and values."""
    return _checksum({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, "")[:16]


def _checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what it held is kept: "
                         "free the disk or choose another folder (TOPOPRUNE_RESULTS, "
                         "TOPOPRUNE_CACHE), then run again") from error
