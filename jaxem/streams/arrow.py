"""Tables of Arrow: Parquet files, files of Arrow (Feather), tables in memory, and data sets of pyarrow."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from jaxem.streams.files import File, digest
from jaxem.streams.piece import Piece
from jaxem.streams.sliced import ENDS
from jaxem.streams.tables import Blocks, Table, arrow

# Bytes read at once from each column of a row group. With none, or pre_buffer, pyarrow holds a row group as a whole:
# 240 MB in the place of 98 for 1,000,000 rows of 32 columns, measured, and no faster.
PAGE_BYTES = 1 << 16
# Files whose footers are kept: what shuffles opens a file for each row group.
FOOTERS = 16


class Parquet(Blocks):
    """A Parquet file; its row groups are the blocks."""

    def __init__(self, file: File, columns: Sequence[str] | None, weights: str | None):
        self.pyarrow, self.file = arrow(file.path), file
        footer, schema = _footer(file)
        super().__init__(schema, columns, weights, file.path)
        self.sized([footer.row_group(i).num_rows for i in range(footer.num_row_groups)])

    def opened(self) -> Any:
        return _parquet(self.file, _footer(self.file)[0])

    def named(self, at: int) -> str:
        return f"{self.file.path}, row group {at}"

    def block(self, source: Any, first: int, last: int, size: int, row: int) -> Iterator[Any]:
        self.file.check(f", before row {row}")
        groups = list(range(first, last + 1))
        try:
            yield from source.iter_batches(size, row_groups=groups, columns=self.used)
        except (OSError, self.pyarrow.ArrowException) as error:
            self.file.check(f", before row {row + sum(self.sizes[first : last + 1])}")
            place, where = self._damaged(source, groups)
            raise ValueError(
                f"{place}: expected rows that can be read; found {where}{error}; the file is damaged"
            ) from error

    def _damaged(self, source: Any, groups: Sequence[int]) -> tuple[str, str]:
        """Which row group cannot be read, and which of its columns, and where that lies."""
        for at in groups:
            group = source.metadata.row_group(at)
            for chunk in (group.column(i) for i in range(group.num_columns)):
                name = chunk.path_in_schema
                if name.split(".")[0] not in self.used and name not in self.used:
                    continue
                try:
                    source.read_row_group(at, columns=[name])
                except (OSError, self.pyarrow.ArrowException):
                    begin = chunk.dictionary_page_offset
                    begin = chunk.data_page_offset if begin is None else min(begin, chunk.data_page_offset)
                    end = begin + chunk.total_compressed_size - 1
                    return self.named(at), f"in column {name!r}, bytes {begin} to {end}, "
        return self.named(groups[0]), ""

    def identity(self) -> Any:
        return self.file.identity()


class Feather(Blocks):
    """A file of Arrow with a footer, as Feather is one; its record batches are the blocks."""

    def __init__(self, file: File, columns: Sequence[str] | None, weights: str | None):
        self.pyarrow, self.file = arrow(file.path), file
        with self._opened([]) as opened:
            super().__init__(opened.schema, columns, weights, file.path)
            self.at = [opened.schema.get_field_index(name) for name in self.used]
        self.sized(self._sizes())

    def opened(self) -> Any:
        return self._opened(self.at)

    @contextlib.contextmanager
    def _opened(self, at: list[int]) -> Iterator[Any]:
        """The file, to read columns of these numbers from; all if there are none."""
        ipc = self.pyarrow.ipc
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(self.pyarrow.OSFile(self.file.absolute))
                options = ipc.IpcReadOptions(included_fields=at)
                opened = stack.enter_context(ipc.open_file(source, options=options))
            except (OSError, self.pyarrow.ArrowException) as error:
                self.file.check()
                raise ValueError(
                    f"{self.file.path}: expected a file of Arrow with its footer at the end; found {self.file.size} "
                    f"bytes, and {error}; one in the streaming format is given as jaxem.stream(lambda: "
                    "pyarrow.ipc.open_stream(path))"
                ) from error
            yield opened

    def _sizes(self) -> list[int]:
        """Rows of the record batches, of which the footer does not tell: one column is read."""
        with self._opened(self.at[:1]) as opened:
            return [self._batch(opened, i).num_rows for i in range(opened.num_record_batches)]

    def _batch(self, opened: Any, at: int) -> Any:
        try:
            return opened.get_batch(at)
        except (OSError, self.pyarrow.ArrowException) as error:
            self.file.check(f", in record batch {at}")
            raise ValueError(
                f"{self.named(at)}: expected rows that can be read; found {error}; the file is damaged"
            ) from error

    def named(self, at: int) -> str:
        return f"{self.file.path}, record batch {at}"

    def block(self, source: Any, first: int, last: int, size: int, row: int) -> Iterator[Any]:
        self.file.check(f", before row {row}")
        for at in range(first, last + 1):
            batch = self._batch(source, at)
            for start in range(0, batch.num_rows, size):
                yield batch.slice(start, size)

    def identity(self) -> Any:
        return self.file.identity()


class InMemory(Table):
    """A `pyarrow.Table` or `RecordBatch`."""

    def __init__(self, table: Any, columns: Sequence[str] | None, weights: str | None, name: str):
        super().__init__(table.schema, columns, weights, name)
        self.table, self.num = table, table.num_rows

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        for first in range(start, self.num, size):
            part = self.table.slice(first, size)
            yield self.piece(part, before + first, self.place)

    def identity(self) -> Any:
        ends = [self.table.slice(0, ENDS), self.table.slice(max(0, self.num - ENDS))]
        arrays = [array for part in ends for array in self.piece(part, 0, self.place).arrays]
        return {"rows": self.num, "types": self.types, "ends": digest(arrays)}


class Dataset(Blocks):
    """A `pyarrow.dataset.Dataset`; row groups, or else its files, are the blocks."""

    def __init__(self, dataset: Any, columns: Sequence[str] | None, weights: str | None, name: str):
        super().__init__(dataset.schema, columns, weights, name)
        self.dataset, self.pyarrow = dataset, arrow(name)
        local = isinstance(getattr(dataset, "filesystem", None), self.pyarrow.fs.LocalFileSystem)
        self.files: dict[str, File] = {}
        self.parts: list[tuple[Any, str, str]] = []  # what is read, the path of its file, and its name
        sizes = []
        for fragment in self._fragments():
            path = getattr(fragment, "path", None) or name
            if local:
                self.files[path] = File.of(path)
            split = fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else [fragment]
            for part in split:
                groups = getattr(part, "row_groups", None)
                self.parts.append((part, path, f"{path}, row group {groups[0].id}" if groups else path))
                sizes.append(groups[0].num_rows if groups else part.count_rows())
        self.sized(sizes)

    def _fragments(self) -> list[Any]:
        try:
            return list(self.dataset.get_fragments())
        except ValueError as error:
            raise ValueError(
                f"{self.place}: expected a data set without a filter, which hides how many rows there are; found "
                f"{error} Or give jaxem.stream(lambda: dataset.to_batches(columns=[...]))"
            ) from None

    def named(self, at: int) -> str:
        return self.parts[at][2]

    def opened(self) -> Any:
        return contextlib.nullcontext()

    def block(self, source: Any, first: int, last: int, size: int, row: int) -> Iterator[Any]:
        for part, path, place in self.parts[first : last + 1]:
            if path in self.files:
                self.files[path].check(f", before row {row}")
            try:
                yield from part.to_batches(
                    schema=self.dataset.schema,
                    columns=self.used,
                    batch_size=size,
                    batch_readahead=1,
                    fragment_readahead=1,
                )
            except (OSError, self.pyarrow.ArrowException) as error:
                raise ValueError(f"{place}: expected rows that can be read; found {error}") from error

    def identity(self) -> Any:
        files: list[Any] = [file.identity() for file in self.files.values()]
        return {"types": self.types, "files": files or [place for _, _, place in self.parts]}


def _parquet(file: File, footer: Any = None) -> Any:
    """A Parquet file, open.

    Raises:
      ValueError: it is none, or ends early.
    """
    pyarrow = arrow(file.path)
    try:
        return pyarrow.parquet.ParquetFile(
            file.absolute,
            metadata=footer,
            memory_map=False,
            buffer_size=PAGE_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except (OSError, pyarrow.ArrowException) as error:
        file.check()
        raise ValueError(
            f"{file.path}: expected a Parquet file with its footer at the end; found {file.size} bytes, and {error}"
        ) from error


@functools.lru_cache(FOOTERS)
def _footer(file: File) -> tuple[Any, Any]:
    """What a Parquet file says of its row groups, and its schema."""
    with _parquet(file) as opened:
        return opened.metadata, opened.schema_arrow
