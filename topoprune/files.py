"""Files that are never half written: tensors (safetensors) and JSON, with checksums."""

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

CURE = "name a file that topoprune wrote, or move this one away and run again"


class FileError(RuntimeError):
    """A file cannot be read or written. The message names the file and the cure."""


class FileWarning(UserWarning):
    """A damaged or foreign file was set aside."""


def canonical(value) -> str:
    """JSON of `value` with sorted keys and without spaces. Raise ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(value) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def key(value) -> str:
    """Short identity of `value`: the first 16 digits of its checksum."""
    return checksum(value)[:16]


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Short identity of tensors: their names, types, shapes and values."""
    return _tensor_checksum(_on_cpu(tensors), "")[:16]


def write(path: Path, content: bytes) -> None:
    """Write a file that is the old or the new one at any moment. Raise FileError if the disk is full or read-only."""
    with explain_write_errors(path):
        path = path.resolve()  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_other_than_file(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def check_writable(path: Path) -> None:
    """Raise FileError now if `write` could not write this file, for a reason other than its size."""
    with explain_write_errors(path):
        path = path.resolve()
        _refuse_other_than_file(path)
        folder = next(folder for folder in path.parents if folder.exists())  # the others are made when it is written
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
        os.close(handle)
        os.unlink(temporary)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write tensors and JSON metadata, with a checksum of both. Raise as `write`."""
    tensors, text = _on_cpu(tensors), canonical(metadata)
    write(path, safetensors.torch.save(tensors, {"metadata": text, "sha256": _tensor_checksum(tensors, text)}))


def read_tensors(path: Path, identity: str | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what `write_tensors` wrote. Raise FileError if it is missing, damaged or altered, or if the "identity" in
    its metadata is another one; None allows any."""
    with _explain_read_errors(path):
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata()
        tensors, metadata = safetensors.torch.load_file(path), json.loads(header["metadata"])
        altered = header["sha256"] != _tensor_checksum(tensors, header["metadata"])
        found = metadata.get("identity")
    _check(path, altered, found, identity)
    return tensors, metadata


def write_json(path: Path, identity, value) -> None:
    """Write a JSON value and its identity, with a checksum of both. Raise as `write`."""
    content = {"identity": identity, "value": value}
    write(path, json.dumps({**content, "sha256": checksum(content)}).encode())


def read_json(path: Path, identity=None) -> Any:
    """Read the value that `write_json` wrote. Raise FileError if it is missing, damaged or altered, or if its identity
    is another one; None allows any."""
    with _explain_read_errors(path):
        content = json.loads(path.read_bytes())
        altered = content.pop("sha256") != checksum(content)
        found, value = content["identity"], content["value"]
    _check(path, altered, found, identity)
    return value


def resume(read: Callable, path: Path, identity) -> Any:
    """Read a file with `read_json` or `read_tensors`. A missing file is None. A refused one is set aside: None too."""
    if not path.exists():
        return None
    _refuse_other_than_file(path)
    try:
        return read(path, identity)
    except FileError as error:
        return set_aside(path, str(error))


def _refuse_other_than_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is a folder or a device: name a file")


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that cannot be continued from, with a warning."""
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    files = (path.with_name(f"{path.name}.refused{ending}") for ending in endings)
    aside = next(file for file in files if not file.exists())
    os.replace(path, aside)
    warnings.warn(f"{reason}; set aside as {aside.name}, starting over", FileWarning, stacklevel=3)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise a `FileError` with the cause and the cure for any OSError."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; what it held is kept: free the disk or choose another "
            "folder, then run again"
        ) from error


@contextlib.contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: name a file that topoprune wrote, or run again to make it") from error
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise FileError(f"{path} is no file of topoprune, or is truncated ({error!r}): {CURE}") from error


def _check(path: Path, altered: bool, found, identity) -> None:
    if altered:
        raise FileError(f"{path} was altered (its checksum differs): {CURE}")
    if identity is None or found == identity:
        return
    reason = f"it is of {found}, not of {identity}"
    if isinstance(found, dict) and isinstance(identity, dict):
        name = next(name for name in [*identity, *found] if found.get(name, ...) != identity.get(name, ...))
        reason = f"its {name} is {found.get(name)}, not {identity.get(name)}"
    raise FileError(f"{path} belongs to another run: {reason}; {CURE}")


def _sync(folder: Path) -> None:
    """Write new names to the disk before an older file is deleted."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that share no memory: safetensors refuses tied weights."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _tensor_checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
