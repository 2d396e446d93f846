"""Arrays in files, as .npy and `numpy.memmap`, by plain reads.

Not by a memory map: a process that looks at the map of a file which has become shorter is killed by a signal (SIGBUS),
and pages of a map count as the process's memory.
"""

import math
import mmap
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxem.streams.checks import check_bits
from jaxem.streams.files import File
from jaxem.streams.piece import Leaf, Piece
from jaxem.streams.reader import Reader

MAGIC = b"\x93NUMPY"


class Binary(Reader):
    """An array (N, ...) that lies in a file from some byte on.

    Attributes:
      file: the file.
      offset: its first byte.
      fortran: whether the first axis is the one that runs fastest.
    """

    def __init__(self, file: File, offset: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False):
        check_bits(dtype, file.path)
        if not shape:
            raise ValueError(f"{file.path}: expected an array with a leading axis of rows; found a single number")
        self.file, self.offset, self.fortran = file, offset, fortran and len(shape) > 1
        self.place, self.num, self.leaves = file.path, shape[0], (Leaf(shape[1:], dtype),)
        needed = offset + math.prod(shape) * dtype.itemsize
        if file.size < needed:
            raise ValueError(
                f"{file.path}: expected {needed} bytes, of an array of shape {shape} and {dtype}; found {file.size}: "
                f"the file {self._ends(file.size)}"
            )

    def _ends(self, size: int) -> str:
        leaf = self.leaves[0]
        row_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        if self.fortran or row_bytes == 0:
            return f"ends at byte {size}"
        return f"ends at byte {size}, in row {max(0, size - self.offset) // row_bytes}"

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        with _opened(self.file) as opened:
            for first in range(start, self.num, size):
                stop = min(first + size, self.num)
                self.file.check(f", before row {before + first}")
                yield Piece([self._rows(opened, first, stop)], self.place)

    def _rows(self, opened: BinaryIO, start: int, stop: int) -> np.ndarray:
        leaf = self.leaves[0]
        step, width = leaf.dtype.itemsize, math.prod(leaf.shape)
        if not self.fortran:
            rows = np.empty((stop - start, *leaf.shape), leaf.dtype)
            self._fill(opened, rows, self.offset + start * width * step)
            return rows
        columns = np.empty((width, stop - start), leaf.dtype)
        for i, column in enumerate(columns):
            self._fill(opened, column, self.offset + (i * self.num + start) * step)
        return columns.T.reshape(stop - start, *leaf.shape, order="F")

    def _fill(self, opened: BinaryIO, array: np.ndarray, offset: int) -> None:
        """Reads an array from its first byte on."""
        if not array.size:
            return
        opened.seek(offset)
        left = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while left:
            count = opened.readinto(left)  # type: ignore[attr-defined]
            if not count:
                end = offset + array.nbytes
                reached = end - len(left)
                raise ValueError(
                    f"{self.file.path}: expected bytes {offset} to {end - 1}; found the file's end: it "
                    f"{self._ends(reached)}; it shrank during the run"
                )
            left = left[count:]

    def identity(self) -> Any:
        return self.file.identity()


def _opened(file: File) -> BinaryIO:
    try:
        return open(file.absolute, "rb", buffering=0)
    except FileNotFoundError:
        file.check()
        raise


def npy(file: File) -> Binary:
    """The array of a .npy file.

    Raises:
      ValueError, TypeError: a header or a dtype that cannot be read, or fewer bytes than the header says.
    """
    with _opened(file) as opened:
        try:
            version = np.lib.format.read_magic(opened)
            if version > (2, 0):
                raise ValueError(f"version {version} of the format, which has names of fields")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(opened)
        except ValueError as error:
            raise ValueError(f"{file.path}: expected the header of a .npy file; found {error}") from None
        return Binary(file, opened.tell(), shape, dtype, fortran)


def mapped(array: np.memmap, name: str) -> Binary | None:
    """The part of a file that a memory map shows, if it is one part and no private copy; else None."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not (isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)) or root.filename is None:
        return None
    whole = array.shape == root.shape and array.strides == root.strides
    if root.mode == "c" or not (array.flags.c_contiguous or (whole and array.flags.f_contiguous)):
        return None
    if root.mode != "r":
        root.flush()
    offset = root.offset + array.ctypes.data - root.ctypes.data
    file = File.of(os.fspath(root.filename), name)
    return Binary(file, offset, array.shape, array.dtype, not array.flags.c_contiguous)
