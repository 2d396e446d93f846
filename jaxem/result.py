"""What a fit returns: the winner, and the fate of every restart."""

import functools
from collections import Counter
from typing import Any

import numpy as np
from jax import Array

from jaxem._numerics import is_concrete
from jaxem._pytree import dataclass
from jaxem._tree import PyTree
from jaxem.elbo import ELBO
from jaxem.model import Health, verbs
from jaxem.stopping import Status


@dataclass
class Restarts:
    """The fate of every restart; each array has a leading axis R.

    Attributes:
      elbo: `ELBO` of the params each ended with; -inf where no step was finite.
      status: `Status` codes.
      num_steps: M-steps behind those params.
      trace: (R, max_steps + 1) ELBO.total after t M-steps, NaN where not reached.
      influence: how near to a spike each ended; see `jaxem.model.Health`.
      min_count: expected observations of the smallest component of each.
      skipped: updates of each that were left out because they were not finite (`GradientAscent`).
    """

    elbo: ELBO
    status: Array
    num_steps: Array
    trace: Array
    influence: Array
    min_count: Array
    skipped: Array

    def counts(self) -> dict[str, int]:
        """How many restarts ended with each status, by name."""
        return {Status(code).name: n for code, n in sorted(Counter(np.asarray(self.status).ravel().tolist()).items())}


@dataclass
class Fit:
    """The result of `fit`; a pytree.

    The model's questions can be asked of it: `fit.predict(x)`, `fit.posterior(x)`, `fit.log_prob(x)`,
    `fit.sample(n, key=key)`, `fit.transform(x)` ... are those of `fit.model` at `fit.params` (or of the model inside a
    wrapper). Rows are held against those of the fit: their shape, their columns' names and the order of these.

    Attributes:
      model: the model, bound to the data.
      params: the winner's params, interchangeable parts in canonical order, or in that of the params it started from
        where these were given.
      elbo: `ELBO` of those params, nats, summed over observations; `.data` is the log-likelihood for exact E-steps.
      status: the winner's `Status` code.
      num_steps: M-steps behind the params.
      hits: restarts that ended at the winner's optimum; one hit among many restarts is a weak claim.
      trace: (max_steps + 1,) the winner's ELBO.total after t M-steps, NaN where not reached.
      winner: index of the winning restart.
      health: `jaxem.model.Health` of the params.
      coincident: whether two components are equal, which is a saddle.
      restarts: `Restarts`.
    """

    model: Any
    params: PyTree
    elbo: ELBO
    status: Array
    num_steps: Array
    hits: Array
    trace: Array
    winner: Array
    health: Health
    coincident: Array
    restarts: Restarts

    def __getattr__(self, name: str) -> Any:
        # A question to the model at the params: fit.predict(x) is fit.model.predict(fit.params, x), in any wrapper.
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        if np.ndim(self.status) > 0:
            raise AttributeError(
                f"a batch of fits has no {name}; ask each: jax.vmap(lambda fit: fit.{name}(...))(fits)"
            )
        model, params = self.model.inside(self.params)
        if name not in verbs(model):
            raise AttributeError(f"a Fit of {model!r} has no {name!r}; it has {', '.join(verbs(model))}")
        method = getattr(model, name)
        question = functools.update_wrapper(functools.partial(method, params), method)
        del question.__wrapped__  # so that its signature is without params
        return question

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *verbs(self.model.inside(self.params)[0])})

    def warnings(self) -> list[str]:
        """What a careful reader should know about this fit, in sentences; empty if there is nothing."""
        notes = []
        status = Status(int(self.status))
        if status != Status.CONVERGED:
            notes.append(f"{status.name}: {status.message}")
        total, codes = np.asarray(self.restarts.elbo.total), np.asarray(self.restarts.status)
        higher = int(((codes == Status.MAX_STEPS) & (total > float(self.elbo.total) + 0.01)).sum())
        if higher and status == Status.CONVERGED:
            notes.append(f"{higher} restarts stopped at max_steps with a higher objective: raise max_steps")
        if codes.size > 1 and int(self.hits) == 1:
            notes.append("only one restart reached this optimum: try more restarts")
        if float(self.health.influence) > 1e-3:
            notes.append(f"the regulariser has influence {float(self.health.influence):.2g} on a component")
        columns = getattr(getattr(self.params, "components", None), "mean", np.zeros((1, 0))).shape[-1]
        if float(self.health.min_count) < 2 * (columns + 1):
            notes.append(f"the smallest component has {float(self.health.min_count):.3g} observations")
        if bool(self.coincident):
            notes.append("two components are equal: a saddle, or more components than distinct rows")
        if int(self.health.relocated):
            notes.append(f"empty clusters were moved {int(self.health.relocated)} times")
        skipped = int(self.restarts.skipped[int(self.winner)])
        if skipped:
            notes.append(f"{skipped} updates were skipped: their gradients were not finite")
        return notes + self.model.notes()

    def __repr__(self) -> str:
        if not is_concrete(self) or np.ndim(self.status) > 0:
            return f"Fit(batch of shape {np.shape(self.status)})"
        status, num = Status(int(self.status)), self.restarts.status.shape[0]
        fates = ", ".join(f"{n} {name}" for name, n in self.restarts.counts().items())
        lines = [
            f"Fit of {self.model!r} ({self.elbo.data.dtype})",
            f"  elbo      {float(self.elbo.total):.6f} nats (data {float(self.elbo.data):.6f}, "
            f"params {float(self.elbo.params):.3g})",
            f"  status    {status.name} after {int(self.num_steps)} steps: {status.message}",
            f"  restarts  {num}: {fates}; {int(self.hits)} reached this optimum",
        ]
        return "\n".join(lines + [f"  note      {note}" for note in self.warnings()])


class FitError(RuntimeError):
    """No restart of a fit has a finite objective. The `fit` attribute holds what there is, codes included."""

    def __init__(self, fit: Fit):
        self.fit = fit
        super().__init__(
            f"no restart reached a finite objective ({fit.restarts.counts()}): the data may overflow their dtype, or "
            "the model's init or log-joint give NaN; the .fit attribute of this error holds the codes"
        )
