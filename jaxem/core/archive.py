"""Files that are whole or not there: a zip of arrays (.npy) and one JSON text, which NumPy opens as .npz; no pickle."""

import hashlib
import io
import json
import os
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# The member that is no array.
TEXT = "fit.json"
DIGEST_BYTES = 16
# What reading a damaged zip, array or text may raise.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,  # and UnicodeDecodeError, JSONDecodeError
    TypeError,
    NotImplementedError,
    RuntimeError,  # an encrypted member
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,  # of an array's header
    OSError,  # a place before the beginning
)


def replace_file(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Lets `write` fill a file beside `path`, then puts that in its place: what is there is the old file or the new."""
    target = Path(os.path.realpath(path))  # of a link the file, not the link
    beside = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def digest(raw: bytes) -> str:
    """A checksum of bytes, as text."""
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).hexdigest()


def _canonical(head: dict[str, Any]) -> bytes:
    """The text that is summed: of all that the JSON holds but its own checksum."""
    rest = {key: value for key, value in head.items() if key != "checksum"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write(path: str | os.PathLike, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a text and arrays, with a checksum of each array and one of the text; the same bytes for the same content.

    Args:
      path: of the file, which is replaced as a whole.
      head: JSON-able, without the keys "members" and "checksum", which are added.
      arrays: by the names they have in the file.
    """
    raw = {f"{name}.npy": _as_bytes(array) for name, array in arrays.items()}
    head = head | {"members": {name: digest(content) for name, content in raw.items()}}
    head["checksum"] = digest(_canonical(head))
    text = json.dumps(head, indent=1, allow_nan=False).encode()

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in {TEXT: text, **raw}.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # of no date

    replace_file(path, fill)


def _as_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return file.getvalue()


def read(path: str | os.PathLike, check: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text and the arrays of a file that `write` made, whole.

    Args:
      path: of the file.
      check: looks at the text before any array is read, and raises ValueError where it is not what is expected.

    Raises:
      ValueError: what is wrong with the file, without its name. OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        return parsed(file.read(), check)


def parsed(raw: bytes, check: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`read` of what a file holds."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
    except DAMAGE:
        raise ValueError(_no_archive(raw[:16])) from None
    with archive:
        return _read(archive, check)


def _read(archive: zipfile.ZipFile, check: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = archive.namelist()
    if TEXT not in names:
        raise ValueError(_foreign(names))
    try:
        head = json.loads(archive.read(TEXT).decode())
    except DAMAGE as error:
        raise ValueError(f"a damaged file: its {TEXT} cannot be read ({error})") from None
    if not isinstance(head, dict):
        raise ValueError(f"an archive of something else: its {TEXT} holds no object")
    check(head)
    if head.get("checksum") != digest(_canonical(head)):
        raise ValueError(f"a damaged file: its {TEXT} is not as it was written, by its checksum")
    expected = head.get("members")
    if not isinstance(expected, dict):
        raise ValueError(f"a damaged file: its {TEXT} lists no members")
    found = [name for name in names if name != TEXT]
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra or len(names) != len(expected) + 1:
        told = [f"without {', '.join(missing)}"] if missing else []
        told += [f"with {', '.join(extra)}, which it was not written with"] if extra else []
        raise ValueError(f"a damaged file: {' and '.join(told) or 'with a member twice'}")
    return head, {name.removesuffix(".npy"): _array(archive, name, summed) for name, summed in expected.items()}


def _array(archive: zipfile.ZipFile, name: str, summed: str) -> np.ndarray:
    """One array, held against its checksum."""
    try:
        raw = archive.read(name)  # against the zip's own as well
        if digest(raw) != summed:
            raise ValueError("not as it was written, by its checksum")
        return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except DAMAGE as error:
        raise ValueError(f"a damaged file: its array {name.removesuffix('.npy')} cannot be read ({error})") from None


def _no_archive(start: bytes) -> str:
    """What a file that begins so is, which is no zip."""
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a truncated file: it begins as one, but its end is missing or damaged"
    if start[:1] == b"\x80":
        return "a pickle, which is not read: one may run any code"
    what = "one array of NumPy (.npy)" if start.startswith(b"\x93NUMPY") else f"no archive (it begins with {start!r})"
    return what


def _foreign(names: list[str]) -> str:
    """What an archive is that was not written here."""
    members = {name.removesuffix(".npy") for name in names}
    if {"fingerprint", "trace", "screened"} <= members:
        return "the checkpoint of an older version, which this one does not read"
    shown = ", ".join(sorted(members)[:6]) or "nothing"
    return f"an archive of something else: it holds {shown}, and no {TEXT}"
