"""Files that streams are read from: what they looked like when they were opened, and whether they still do."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was found.

    Attributes:
      path: as the user gave it, for messages.
      absolute: the same from the root, which a change of directory does not touch.
      size: in bytes.
      changed: time of its last change, in nanoseconds.
    """

    path: str
    absolute: str
    size: int
    changed: int

    @staticmethod
    def of(path: str | os.PathLike, name: str = "source") -> "File":
        """The file at a path; `name` is the argument's.

        Raises:
          FileNotFoundError: there is none.
        """
        shown = os.fspath(path)
        try:
            found = os.stat(shown)
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: expected a file that exists; found no {shown!r}") from None
        return File(shown, os.path.abspath(shown), found.st_size, found.st_mtime_ns)

    def check(self, what: str = "") -> None:
        """Raises ValueError unless the file is still the one that was opened; `what` says where reading stands."""
        try:
            found = os.stat(self.absolute)
        except FileNotFoundError:
            raise ValueError(f"{self.path}: expected the file that was opened; found none{what}") from None
        if found.st_size != self.size:
            how = "shrank" if found.st_size < self.size else "grew"
            raise ValueError(
                f"{self.path}: expected {self.size} bytes, as when it was opened; found {found.st_size}: the file "
                f"{how} during the run{what}"
            )
        if found.st_mtime_ns != self.changed:
            raise ValueError(
                f"{self.path}: expected the file as it was opened; found that it was written to since{what}; every "
                "pass must see the same rows"
            )

    def identity(self) -> dict[str, Any]:
        """Path, size and time, as JSON."""
        return {"path": self.absolute, "bytes": self.size, "changed": self.changed}


def digest(arrays: Iterable[np.ndarray]) -> str:
    """A digest of shapes, dtypes and values."""
    total = hashlib.blake2b(digest_size=16)
    for array in arrays:
        total.update(f"{array.shape} {array.dtype.str}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
