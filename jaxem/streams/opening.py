"""`jaxem.stream`: whatever holds more rows than memory does, as batches."""

from collections.abc import Sequence
from typing import Any

from jaxem.core.arguments import check_integer, shown
from jaxem.core.stream import Stream
from jaxem.streams.iterated import Iterated
from jaxem.streams.kinds import KINDS, is_path, is_paths, is_table, slices
from jaxem.streams.readers import seekable
from jaxem.streams.seekable import BUFFER, Rows
from jaxem.streams.tables import check_columns


def stream(
    source: Any,
    *,
    batch_rows: int | None = None,
    columns: Sequence[str] | None = None,
    weights: Any = None,
    buffer: int = BUFFER,
) -> Stream:
    """Rows that need not fit in memory, as batches that can be read again in every pass.

    `jaxem.fit` takes the stream in the place of data. Every batch is checked when it is read, in every pass: all
    numbers finite, weights none below 0, all batches made alike.

    Args:
      source: where the rows are.
        A path, or a list of paths whose rows follow one another: .npy; Parquet; Arrow with a footer (.arrow, .feather);
        a directory, for the Parquet files below it in the order of their names. Files are read by plain reads, never by
        memory maps, and must not change as long as the stream is in use.
        An array (N, ...) that slices: `numpy.memmap`, NumPy, JAX, h5py, Zarr; a dict or tuple of such arrays, or paths
        of .npy files, that share their leading axis.
        A `pyarrow.Table`, or a `pyarrow.dataset.Dataset`, which knows of partitions and of files elsewhere.
        What can be iterated again and again, as a list of arrays or a loader of Grain or PyTorch that does not shuffle,
        or a function that makes an iterator. It yields batches: arrays, pytrees of arrays (a list of them counts as a
        tuple), or frames.
      batch_rows: most rows in a batch. None: as many as make about 8 MiB, from 1024 to 131072, all batches about equal;
        of what is iterated, as many as the first batch has. Batches of files and arrays are full but for the last.
        Those of an iterator come as they are, larger ones are split.
      columns: names of the columns of a table, in the order they are to have, or keys of a dict; others are not read.
        None: all but the weights, which must then be numbers. A table's rows are (n, D); a column of
        lists of equal length counts as so many columns.
      weights: of the rows. The name of a table's column; an array (N,) that slices, or the path of a .npy file; True
        for what is iterated, where each item is a pair (data, weights).
      buffer: batches whose rows are mixed where an algorithm shuffles the stream, and are in memory then.

    Returns:
      A `Stream`. Its arrays are all of one dtype: float32 and float64 stay as far as JAX's x64 mode lets them, halves
      become float32, integers and booleans JAX's default float. It holds no rows; a pass holds a few batches, of
      Parquet also some pages of every column, of Arrow a record batch. Parquet and Arrow need pyarrow, the extra
      "streams".

    Raises:
      TypeError: a source of another kind, as an iterator that can be read once only.
      FileNotFoundError: no such file.
      ValueError: no rows; a file that is damaged, or ends early; columns that there are not, or hold no numbers; arrays
        that differ in length; files made differently. Reading batches raises it too, with file, row group and row.
      ImportError: pyarrow is needed, and missing.

    Examples:
      >>> import jaxem, numpy as np, pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "rows.npy"
      ...     np.save(path, np.arange(20, dtype=np.float32).reshape(10, 2))
      ...     rows = jaxem.stream(path, batch_rows=4)
      ...     sums = [batch.data.sum().item() for batch in rows.read()]
      >>> rows
      Stream(10 rows of shape (2,), float32, in batches of 4)
      >>> sums
      [28.0, 92.0, 70.0]
      >>> jaxem.stream(lambda: (np.full((3, 2), i, np.float32) for i in range(5)))
      Stream(some number of rows of shape (2,), float32, in batches of 3)
    """
    check_columns(columns)
    check_integer("buffer", buffer, 1)
    columns = None if columns is None else list(columns)
    _refuse(source)
    if _is_iterated(source):
        again = hasattr(source, "__iter__") and not isinstance(source, type)  # a class makes its instances
        make = (lambda: source) if again else source
        found: Rows = Iterated(make, batch_rows, columns, _pairs(weights))
    else:
        found = seekable(source, batch_rows, columns, weights)
    found.buffer = buffer
    return found


def _is_iterated(source: Any) -> bool:
    if is_path(source) or isinstance(source, (dict, tuple)) or slices(source) or is_table(source):
        return False
    return not is_paths(source)


def _refuse(source: Any) -> None:
    """Raises TypeError for what is no source, with the remedy."""
    said = f"source: expected {KINDS}, arrays, a table, or a function that makes an iterator of batches; found "
    if isinstance(source, Stream):
        raise TypeError(f"{said}a stream, {source!r}, which is one already")
    if hasattr(source, "__next__") and iter(source) is source:
        raise TypeError(
            "source: expected what can be iterated again in each pass; found a "
            f"{type(source).__name__}, which is used up by the first; give the function that makes it, as "
            "jaxem.stream(lambda: ...), or for rows that come only once call OnlineEM.begin and OnlineEM.update"
        )
    if is_path(source) or slices(source) or is_table(source) or isinstance(source, (dict, tuple, list)):
        return
    if hasattr(source, "iloc") or hasattr(source, "get_columns"):
        raise TypeError(
            f"{said}a frame in memory, which fit takes as it is; to read it in batches give its .to_numpy()"
        )
    if hasattr(source, "keys"):
        raise TypeError(f"{said}{shown(source)}, a group; choose arrays of it, as group['x'] or {{'x': group['x']}}")
    if not (hasattr(source, "__iter__") or callable(source)):
        raise TypeError(said + shown(source))


def _pairs(weights: Any) -> bool | str | None:
    """What `weights` says of items that are iterated."""
    if weights is None or weights is False:
        return None
    if weights is True or isinstance(weights, str):
        return weights
    raise TypeError(
        "weights: expected True, for items that are pairs (data, weights), or the name of a column where they are "
        f"frames; found {shown(weights)}"
    )
