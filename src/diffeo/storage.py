"""Files that appear whole or not at all, and the format of model files: tensors, a header, a digest over both.

A file is one safetensors file. Its header holds strings, among them the format and its version, JSON, and a SHA-256
digest over all of it and the tensors. Reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORMAT, FORMAT_VERSION = "diffeo", 1


class RecipeCall(NamedTuple):
    """Which recipe made a density, and with which arguments; a file's header says it."""

    name: str
    arguments: dict[str, Any]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed onto it at the end, removed after an error."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and a header with a digest over both; atomic."""
    from safetensors.torch import save as to_bytes

    header = {**header, "sha256": _digest(tensors, header)}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata=header))


def read_tensors(path: str | os.PathLike[str], format: str = FORMAT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote, with every check; errors are ValueErrors that name the file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a directory, not a model file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a model file, or truncated ({error})") from error
    if header.get("format") != format:
        raise ValueError(f"{path}: a safetensors file, but not one that diffeo wrote for this purpose")
    written = header.get("format_version", "")
    if not written.isdigit():
        raise ValueError(f"{path}: its header names no format version; the file was altered or damaged")
    if int(written) > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {written} by diffeo {header.get('diffeo')}; "
            f"this version reads up to {FORMAT_VERSION}: upgrade diffeo"
        )
    digest = header.pop("sha256", "")
    if digest != _digest(tensors, header):
        raise ValueError(f"{path}: the contents do not match their checksum; the file was altered or damaged")
    return tensors, header


def _digest(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def to_json(value: Any) -> str:
    """JSON of a recipe's arguments, tensors included."""

    def encode(v: Any) -> Any:
        if isinstance(v, Tensor):
            return {"tensor": v.tolist(), "dtype": str(v.dtype).removeprefix("torch.")}
        if hasattr(v, "item") and getattr(v, "ndim", None) == 0:  # a NumPy number
            return v.item()
        raise ValueError(f"save: a recipe's arguments must be JSON data or tensors, got {type(v).__name__}: {v!r}")

    return json.dumps(value, default=encode)


def from_json(text: str) -> Any:
    def decode(v: dict[str, Any]) -> Any:
        return torch.tensor(v["tensor"], dtype=getattr(torch, v["dtype"])) if set(v) == {"tensor", "dtype"} else v

    return json.loads(text, object_hook=decode)
