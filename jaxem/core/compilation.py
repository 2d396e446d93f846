"""The folder in which JAX keeps compiled programs, so that the next process loads what this one has compiled."""

import os
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxem.core.arguments import shown


def cache(path: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs in a folder, from which later calls in other processes load them.

    A first fit of a shape takes seconds, nearly all of them compilation; with its programs in the folder, tenths of a
    second. These are JAX's own settings, set for all that this process compiles from here on, of jaxem or not, however
    short: call it first. Nothing is kept unless it is called.

    Programs are those of one version of JAX and one kind of processor. What is loaded is run as it is: nobody else
    should be able to write to the folder, and machines with different processors that share a home should not share
    it. It may be deleted at any time.

    Args:
      path: the folder, made where there is none; None for "jaxem" in the platform's cache folder: `$XDG_CACHE_HOME`
        or `~/.cache`, on macOS `~/Library/Caches`, on Windows `%LOCALAPPDATA%`.

    Returns:
      The folder.

    Raises:
      TypeError: no path.
      ValueError: a file, or a folder that cannot be made or written to.

    Examples:
      >>> import tempfile, jaxem
      >>> jaxem.cache()  # doctest: +SKIP
      PosixPath('/home/me/.cache/jaxem')
      >>> with tempfile.NamedTemporaryFile() as file:  # doctest: +ELLIPSIS
      ...     jaxem.cache(file.name)
      Traceback (most recent call last):
      ValueError: path: expected a folder; found a file, ...
    """
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of a folder, or None; found {shown(path)}")
    folder = Path(_default() / "jaxem" if path is None else path).expanduser().absolute()
    if folder.is_file():
        raise ValueError(f"path: expected a folder; found a file, {str(folder)!r}; give another path")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"path: expected a folder that can be made; found {str(folder)!r} ({error.strerror}); give another path"
        ) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"path: expected a folder that can be written to; found {str(folder)!r}; give another path")
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # JAX looks at its settings once, before the first program
    return folder


def _default() -> Path:
    """The platform's folder for what can be made again."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
