"""What all estimators share: float64 whatever JAX's setting, padded rows, keys from random states, and reports."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import joblib
import numpy as np
import sklearn
from jax import Array
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight

from jaxem.core import warn as _warn
from jaxem.engine.drive import Progress
from jaxem.engine.fit import fit
from jaxem.engine.result import Fit, FitError
from jaxem.stopping import Status

try:  # scikit-learn 1.9
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:
    CallbackSupportMixin = object

    def with_callbacks(method: Any) -> Any:
        """The method as it is: there are no callbacks to tear down."""
        return method


FLOATS = [np.float64, np.float32]
# Rows are padded to powers of two from LEAST to FINE, beyond to an eighth of an octave; data of more numbers than MOST,
# for which compiling is the smaller part, are taken as they are.
LEAST, FINE, MOST = 32, 4096, 2**24

# Folders of callers who are not the user.
_THEIRS = tuple(str(Path(module.__file__).parent) for module in (sklearn, joblib))

Method = TypeVar("Method", bound=Callable[..., Any])


def in_x64(method: Method) -> Method:
    """The method with JAX's x64 mode on, in this thread and for its duration: float64 stays float64."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(True):
            return method(*args, **kwargs)

    return call  # type: ignore[return-value]


def bucket(num: int) -> int:
    """Rows that `num` of them are padded to, so that data of many lengths share few programs."""
    power = 1 << (num - 1).bit_length()
    step = power if power <= FINE else power >> 4
    return max(LEAST, -(-num // step) * step)


def extra_rows(X: np.ndarray) -> int:
    """How many rows to add."""
    return 0 if X.size > MOST else bucket(len(X)) - len(X)


def padded(X: np.ndarray, weights: np.ndarray | None = None) -> tuple[Any, Any]:
    """Rows and their weights with copies of the first row, of weight 0, behind them."""
    more = extra_rows(X)
    weights = np.ones(len(X), X.dtype) if weights is None else weights
    if not more:
        return X, weights
    return np.concatenate([X, np.repeat(X[:1], more, 0)]), np.concatenate([weights, np.zeros(more, weights.dtype)])


def asked(question: Callable[[np.ndarray], Any], X: np.ndarray) -> np.ndarray:
    """The answers of a question to rows, asked of padded ones, as NumPy."""
    return np.array(question(padded(X)[0]))[: len(X)]


def seed(random_state: Any) -> Array:
    """A key from a random state in one of scikit-learn's forms, of which it draws one integer."""
    return jax.random.key(check_random_state(random_state).randint(2**31 - 1))


def checked_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """Weights (N,) as numbers >= 0 that are not all 0; None for none."""
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=X.dtype)
    if (weights < 0).any():
        raise ValueError(f"Negative values in data passed to `sample_weight`: found {weights.min():g}")
    if not (weights > 0).any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def warn(message: str, category: type[Warning]) -> None:
    """Warns from the line of the user who called, be it through a pipeline or a search."""
    _warn.warn(message, category, beyond=_THEIRS)


def host(tree: Any) -> Any:
    """The tree with NumPy leaves, which a process without x64 reads as what they are."""
    return jax.device_get(tree)


def total_weight(X: Any, weights: np.ndarray | None) -> float:
    """The sum of the weights: observations that the rows stand for."""
    return float(X.shape[0] if weights is None else weights.sum())


class Watched(CallbackSupportMixin):
    """Runs a fit, tells scikit-learn's callbacks and the console of it, and keeps what it found.

    Attributes:
      fit_: the `jaxem.Fit`, with NumPy leaves.
      statuses_: how many restarts ended with which `jaxem.Status`, by name.
    """

    fit_: Fit
    statuses_: dict[str, int]
    _failed: ClassVar[str] = "No start has a finite objective:"

    def _bar(self, X: Any) -> "Bar":
        """What scikit-learn's callbacks are told through."""
        return Bar(self, X)

    def _run(self, model: Any, X: np.ndarray, weights: np.ndarray | None, **settings: Any) -> Fit:
        """The fit of padded rows on the host; ValueError where no restart is finite."""
        rows, row_weights = padded(X, weights)
        bar = self._bar(X)
        try:
            with _warn.silenced():  # `_report` tells instead
                found = fit(model, rows, weights=row_weights, callback=bar if bar.heard else None, **settings)
        except FitError as error:
            reasons = [reason for reason in error.reasons if not reason.startswith("the .fit attribute")]
            raise ValueError(f"{self._failed} {'; '.join(reasons)}") from error
        bar.end()
        found = self._named(host(found))
        self._refuse(found)  # what there is of an earlier fit stays as it is
        self.fit_ = found
        self.statuses_ = self.fit_.restarts.counts()
        return self.fit_

    def _refuse(self, found: Fit) -> None:
        """Raises ValueError for a fit that is none."""

    def _named(self, found: Fit) -> Fit:
        """The fit, told of the columns' names where the rows were a frame."""
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return found
        rows = dataclasses.replace(found.model.rows, names=(tuple(names.tolist()),))
        return dataclasses.replace(found, model=dataclasses.replace(found.model, rows=rows))

    def _report(self, message: str) -> None:
        """Warns, with the fit's own notes, where it has not converged or two components are equal."""
        if Status(int(self.fit_.status)) != Status.CONVERGED or bool(self.fit_.coincident):
            said = "; ".join(self.fit_.warnings())
            for ours, theirs in TERMS.items():
                said = said.replace(ours, theirs)
            warn(f"{message} {said}".strip(), ConvergenceWarning)


# The remedies of a fit in scikit-learn's terms.
TERMS = {
    "max_steps": "max_iter",
    "loosen the stop rule, as stop=jaxem.Stop(atol=1e-6)": "raise tol",
    "pseudo_observations=1": "a larger reg_covar",
}


class Bar:
    """scikit-learn's callbacks as a callback of `fit`: a task of 100 parts, of which each is a share of the work.

    Attributes:
      heard: whether there are any.
    """

    PARTS = 100

    def __init__(self, estimator: Any, X: Any):
        self.estimator, self.X, self.done = estimator, X, 0
        self.heard = bool(getattr(estimator, "_skl_callbacks", None))
        if self.heard:
            self.context = estimator._init_callback_context(max_subtasks=self.PARTS)
            self.context.call_on_fit_task_begin(estimator=estimator, X=X)

    def __call__(self, progress: Progress) -> bool:
        return self.at(progress.share)

    def at(self, share: float) -> bool:
        """Tells that this share of the work is done; whether a callback asks for the end."""
        stop = False
        while self.heard and self.done < min(int(share * self.PARTS), self.PARTS):
            self.done += 1
            part = self.context.subcontext(task_name="part")
            part.call_on_fit_task_begin(estimator=self.estimator)
            stop = bool(part.call_on_fit_task_end(estimator=self.estimator)) or stop
        return stop

    def end(self) -> None:
        """Tells of the parts that are left, as where a fit converged early, and of the end."""
        self.at(1.0)
        if self.heard:
            self.context.call_on_fit_task_end(estimator=self.estimator, X=self.X)


def print_traces(fit: Fit, name: str, sign: float, interval: int = 1, tol: str = "tolerance") -> None:
    """What scikit-learn prints while it fits: for each start its steps and how it ended.

    Starts run side by side, so that it comes when they are done.
    """
    for start, code in enumerate(fit.restarts.status.tolist()):
        print(f"Start {start}: Initialization complete")
        num, trace = int(fit.restarts.num_steps[start]), sign * fit.restarts.trace[start]
        for step in range(1, num + 1):
            if step % interval == 0:
                print(f"  Iteration {step}, {name} {trace[step]:.5f}, change {trace[step] - trace[step - 1]:.3g}")
        ended = "strict convergence" if num and trace[num] == trace[num - 1] else tol
        status = f"Converged: {ended}." if code == Status.CONVERGED else f"Did not converge: {Status(code).name}."
        print(f"  {status}")
