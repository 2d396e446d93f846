"""Fits as files: one .npz of arrays and JSON, which any NumPy opens, and in which nothing can run."""

import dataclasses
import os
import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxem.core import archive
from jaxem.core.arguments import check_flag, shown
from jaxem.core.decoding import decode
from jaxem.core.encoding import encode
from jaxem.engine.result import Fit, check_fit
from jaxem.wrappers import check_model

# What the file says that it is, and the version of how it is laid out: of the members and of the JSON's form.
FORMAT, LAYOUT = "jaxem.fit", 1


@dataclasses.dataclass(frozen=True)
class _Like:
    """What stands in for a fit where parts of one are looked for."""

    model: Any


def save(fit: Fit, path: str | os.PathLike, *, leave_out: bool = False) -> None:
    """Writes a fit to one file, from which `load` makes it again, in another process or on another machine.

    The file is a .npz: `numpy.load(path)` has the arrays by their names, as "params.mixing"; its member fit.json, a
    text, has all else, and the versions of jaxem and JAX. No pickle is in it, and reading it runs no code. Functions
    and classes are kept by name: those of JAX and jaxem are found again by themselves, your own must be at the top of a
    module (see `load`). An optax optimiser inside a model, as of `EmpiricalBayes`, is made of closures and is not kept:
    questions do not need it, another fit of that model does, and says so.

    The file appears as a whole or not at all: it is written beside the path and then put in its place.

    Args:
      fit: what `jaxem.fit` returned; a batch of fits, as `jax.vmap` makes, is one too.
      path: of the file, by custom ending in .npz; what is there is replaced.
      leave_out: whether functions without a name, as lambdas and those inside networks of Equinox, are left out instead
        of refused; `load` then takes them from `like`.

    Raises:
      TypeError: no `Fit`, or no path.
      ValueError: no folder to write to; a part that cannot be written (a lambda, a function inside a function, a
        tracer), with its place in the fit and the remedy.
      OSError: the file cannot be written.

    Examples:
      >>> import jax, jaxem, numpy as np, pathlib, tempfile
      >>> x = np.random.default_rng(0).normal(size=(50, 2))
      >>> fit = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "fit.npz"
      ...     jaxem.save(fit, path)
      ...     again = jaxem.load(path)
      ...     mixing = np.load(path)["params.mixing"]
      >>> bool((again.log_prob(x) == fit.log_prob(x)).all()), mixing.tolist()
      (True, [1.0])
    """
    check_fit(fit)
    _check_path(path)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"path: expected a file in a directory that exists; found {os.fspath(path)!r}")
    check_flag("leave_out", leave_out)
    node, arrays = encode(fit, "fit", leave_out)
    versions = {"jaxem": _version(), "jax": jax.__version__, "numpy": np.__version__}
    archive.write(path, {"format": FORMAT, "layout": LAYOUT, **versions, "fit": node}, arrays)


def load(path: str | os.PathLike, *, trusted: Iterable[Any] = (), like: Any = None) -> Fit:
    """The fit that `save` wrote.

    Questions asked of it have the same answers, bit by bit, on the same kind of device and version of JAX. Arrays of 64
    bits need JAX's x64 mode, as where they were made: without it they are refused, not rounded. A file is checked
    before anything is made of it: every array and the text have checksums.

    Nothing in a file can run: it may name classes of jaxem and distrax and elementwise functions of JAX. A
    `jaxem.dataclass` of your own, as a model or a family, is found where its module is imported; its other classes and
    functions, which would be called with what the file holds, must be trusted by name.

    Args:
      path: of the file.
      trusted: classes and functions of your own, or whole modules, that the file may name: `[MyModel, my_activation]`,
        `[equinox]`. They are found by their names, also where they have moved to another module.
      like: a model made as the one that was fitted, where a file lacks parts (`leave_out`): they are taken from it.

    Returns:
      A `Fit`, its arrays on the default device.

    Raises:
      ValueError: "path: expected ...; found ..." for a file that is foreign, truncated, damaged or of a newer version
        of jaxem; and for what it needs and this process lacks, named with the remedy: a class or a function, 64 bits.
      TypeError: no path, or `trusted` that holds no classes, functions or modules.
      OSError: there is no such file, or it cannot be read.
    """
    _check_path(path)
    if like is not None:
        check_model(like)
    trusted = _as_trusted(trusted)
    try:
        head, arrays = archive.read(path, _check_head)
        fit = decode(head.get("fit"), arrays, "fit", trusted, None if like is None else _Like(like))
        if not isinstance(fit, Fit):
            raise ValueError(f"{shown(fit)}")
    except ValueError as error:
        raise ValueError(f"path: expected a fit that jaxem.save wrote; found {os.fspath(path)}, {error}") from None
    return fit


def _version() -> str:
    return sys.modules["jaxem"].__version__  # which stands above all rooms


def _check_path(path: Any) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of a file, as 'fit.npz'; found {shown(path)}")


def _as_trusted(trusted: Any) -> tuple[Any, ...]:
    single = not isinstance(trusted, (list, tuple, set, frozenset))
    for item in (trusted,) if single else trusted:
        if single or not (callable(item) or hasattr(item, "__spec__")):
            what = "a list of classes, functions or modules, as trusted=[MyModel]"
            raise TypeError(f"trusted: expected {what}; found {shown(trusted if single else item)}")
    return tuple(trusted)


def _check_head(head: dict[str, Any]) -> None:
    """Raises ValueError for a text of something else, or of a layout that this version does not know."""
    if head.get("format") == "jaxem.checkpoint":
        raise ValueError("the checkpoint of a fit, which jaxem.fit(..., checkpoint=path) goes on from")
    if head.get("format") != FORMAT:
        raise ValueError(f"an archive of something else, by its format {head.get('format')!r}")
    layout = head.get("layout")
    if type(layout) is not int or layout < 1:
        raise ValueError(f"a damaged file: its layout is {layout!r}")
    if layout > LAYOUT:
        raise ValueError(
            f"a file of jaxem {head.get('jaxem')}, of layout {layout}; this is jaxem {_version()}, which reads "
            f"layouts up to {LAYOUT}; install a newer one"
        )
