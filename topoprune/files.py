"""Files that are never half written: checkpoints (safetensors) and JSON with a checksum."""

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save


class FileError(RuntimeError):
    """A file cannot be read or written; the message names it and the cure."""


class FileWarning(UserWarning):
    """A damaged or foreign file was set aside; nothing else was lost."""


def canonical(value) -> str:
    """The one JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key(value) -> str:
    """Short name of `value`: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def write(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is either the old or the new one.

    Raises:
        FileError: the disk is full or read-only; the old file is untouched.
    """
    with naming_the_cure(path):
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
        FileError: missing, truncated, altered, or not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(path)
        text = header["metadata"]
        metadata = json.loads(text)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: name a checkpoint that topoprune wrote") from error
    except (OSError, KeyError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{path} is no checkpoint of topoprune, or is truncated ({error}): delete it and run again"
        ) from error
    if header.get("sha256") != _checksum(tensors, text) or not isinstance(metadata, dict):
        raise FileError(f"{path} was altered (its checksum differs): delete it and run again")
    return tensors, metadata


def resume_tensors(path: Path, identity: str) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The checkpoint at `path` if it belongs to `identity`; any other is set aside by name."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except FileError as error:
        return set_aside(path, str(error))
    if metadata.get("identity") != identity:
        return set_aside(path, f"{path} belongs to another run")
    return tensors, metadata


def write_json(path: Path, identity, value) -> None:
    """Write a JSON value with the identity of what it belongs to and a checksum of both.

    Raises:
        FileError: as `write`.
    """
    content = {"identity": identity, "value": value}
    text = json.dumps({**content, "sha256": json_digest(content)}, allow_nan=False)  # in the given order
    write(path, text.encode())


def read_json(path: Path, identity):
    """The value of a file that `write_json` wrote for `identity`.

    Raises:
        FileError: as `check_json`, or of another identity.
    """
    found, value = check_json(path)
    if found != identity:
        raise FileError(f"{path} belongs to another run: {_other(found, identity)}")
    return value


def check_json(path: Path) -> tuple:
    """Identity and value of a file that `write_json` wrote.

    Raises:
        FileError: missing, truncated, altered, or not such a file.
    """
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("sha256")
        found, value = content["identity"], content["value"]
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: run again to make it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is no file of topoprune, or is truncated ({error!r})") from error
    if checksum != json_digest(content):
        raise FileError(f"{path} was altered (its checksum differs)")
    return found, value


def resume_json(path: Path, identity):
    """The value at `path` if it is sound and belongs to `identity`, else None: it is set aside by name."""
    if not path.exists():
        return None
    try:
        return read_json(path, identity)
    except FileError as error:
        return set_aside(path, str(error))


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that cannot be continued from, and say so."""
    aside = path.with_name(path.name + ".refused")
    os.replace(path, aside)
    warnings.warn(f"{reason}; set aside as {aside.name}, starting over", FileWarning, stacklevel=3)


def json_digest(value) -> str:
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
def naming_the_cure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; what it held is kept: "
            "free the disk or choose another folder (TOPOPRUNE_RESULTS, "
            "TOPOPRUNE_CACHE), then run again"
        ) from error
