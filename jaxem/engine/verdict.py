"""What `fit` tells on the host about its end: a warning where the end is news, an error where nothing is finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core.warn import FitWarning, warn
from jaxem.engine import table as _table
from jaxem.engine.result import Fit, FitError
from jaxem.engine.table import Problem
from jaxem.stopping import Status


def announce(problem: Problem, fit: Fit) -> None:
    """Warns, once, of a winner that should not be taken for an optimum; raises FitError where nothing is finite."""
    # In numpy: a sum of arrays would wait for a sweep that Ctrl-C has left to the device.
    elbo, codes = jax.tree.map(np.asarray, (fit.restarts.elbo, fit.restarts.status))
    if not np.isfinite(elbo.total).any() and not (codes == Status.INTERRUPTED).any():
        raise FitError(fit, _reasons(problem, fit))
    status = Status(int(fit.status))
    doubtful = status in (Status.DEGENERATE, Status.NONFINITE, Status.DECREASED)
    doubtful |= status == Status.UNDERFIT and problem.max_steps > 0
    if doubtful or (status == Status.MAX_STEPS and not _asked_for_all_steps(problem)):
        warn(f"fit ended as {fit.verdict()}", FitWarning)


def _asked_for_all_steps(problem: Problem) -> bool:
    """Whether MAX_STEPS is no news: nothing but an evaluation, or no stop rule that could have ended the fit."""
    if problem.max_steps == 0 or problem.stop.never or problem.algorithm.open_ended:
        return True
    return not bool(problem.algorithm.settled(problem.model, jnp.int32(problem.max_steps - 1)))


def _reasons(problem: Problem, fit: Fit) -> list[str]:
    """What is known of why no restart has a finite objective."""
    found = [_overflow(jax.tree_util.keystr(path), leaf) for path, leaf in _leaves(problem.data)]
    reasons = [reason for reason in found if reason]
    if not reasons:
        reasons = [_bad_starts(problem, fit)]
    return [*reasons, *fit.model.notes(), "the .fit attribute of this error holds the codes"]


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _overflow(path: str, leaf: Any) -> str:
    """A sentence where a sum of the squares of an array overflows its dtype."""
    largest, limit = float(jnp.max(jnp.abs(leaf))), float(jnp.finfo(leaf.dtype).max)
    if largest <= np.sqrt(limit / leaf.size):
        return ""
    return f"data{path} reach {largest:.3g}, whose squares overflow {leaf.dtype}: rescale them"


def _bad_starts(problem: Problem, fit: Fit) -> str:
    """Whether the params of the starts are not finite, or their objective."""
    params = _table.begin(problem, *_table.draw(problem)).states.params
    for path, leaf in _leaves(params):
        bad = int((~np.isfinite(np.asarray(leaf)).reshape(problem.num_restarts, -1).all(1)).sum())
        if bad:
            source = "the model's init gives" if problem.params is None else "params hold"
            return f"{source} NaN or infinities in params{jax.tree_util.keystr(path)} of {bad} starts"
    return "the starts are finite, but their log-joint or ELBO is not, of the model or its penalty"
