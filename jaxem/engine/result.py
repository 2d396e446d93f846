"""What a fit returns: the winner, and the fate of every restart."""

import functools
from collections import Counter
from typing import Any

import numpy as np
from jax import Array

from jaxem.core.arguments import has_fields, shown
from jaxem.core.foreign import QUESTIONS
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
from jaxem.engine import draws as _draws
from jaxem.engine import export as _export
from jaxem.engine.plan import Plan
from jaxem.model import Health, verbs
from jaxem.stopping import Status
from jaxem.wrappers import Chunked


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
      total_weight: sum of the weights, which count as observations.
      num_rows: rows of positive weight.
      plan: what was chosen to fit into memory, a `jaxem.engine.plan.Plan`; None where nothing had to be.
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
    total_weight: Array
    num_rows: Array
    plan: Plan | None = static(default=None)

    def verdict(self) -> str:
        """How the winner ended, why as far as the model knows, and what to do, in a sentence or two."""
        status = Status(int(self.status))
        if not np.isfinite(float(_total(self.elbo))):
            return f"{status.name}: no restart has a finite objective"
        advice = self.model.notes(self.params) if status == Status.DEGENERATE else []
        advice = [self._shortfall()] if status == Status.UNDERFIT else advice
        return "; ".join([f"{status.name}: {status.message}", *(advice or _REMEDIES.get(status, []))])

    def _shortfall(self) -> str:
        """By how much an UNDERFIT misses what its model reaches with its latents switched off."""
        gap = float(self.health.least_elbo) - float(self.elbo.data)
        return f"it misses that by {gap / float(self.total_weight):.3g} nats for each unit of weight"

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
            there = f"; write {QUESTIONS[name]}" if name in QUESTIONS else ""
            raise AttributeError(f"a Fit of {model!r} has no {name!r}{there}; it has {', '.join(verbs(model))}")
        if self.plan is not None and self.plan.chunk is not None:  # what did not fit there does not fit here
            model = Chunked(model, size=self.plan.chunk, rows=model.rows)  # type: ignore[abstract]
        method = getattr(model, name)
        question = functools.update_wrapper(functools.partial(method, params), method)
        del question.__wrapped__  # so that its signature is without params
        return question

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *verbs(self.model.inside(self.params)[0])})

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns that the model was fitted to, as a frame has them; None where the data had none.

        Of several arrays those of all, in the order of the pytree; a column alone in a dict is called by its key.
        """
        rows = _export.observed_rows(self.model.inside(self.params)[0])
        return rows.columns

    def to_dict(self) -> dict[str, Any]:
        """What the fit is, in plain Python and NumPy, by names: for tables of experiments, JSON, other libraries.

        Of status, verdict, notes, elbo, num_steps, hits, winner, total_weight, num_rows, feature_names and plan
        numbers, text and lists; "params" by the names of their fields, "trace" and "restarts" as NumPy arrays, of which
        `.tolist()` makes JSON's. For another process use `jaxem.save`: a dict does not come back.

        Raises:
          ValueError, TypeError: a batch of fits; tracers.

        Examples:
          >>> import jax, jaxem
          >>> fit = jaxem.fit(jaxem.GMM(1), jax.numpy.ones((3, 2)), key=jax.random.key(0))
          >>> found = fit.to_dict()
          >>> found["status"], found["num_rows"], found["params"]["components"]["mean"].tolist()
          ('CONVERGED', 3, [[1.0, 1.0]])
        """
        return _export.as_dict(self)

    def to_frame(self) -> Any:
        """The components as rows of a pandas data frame, with the names that the columns had in the data.

        One column for each quantity and column of the data: "weight", then of Gaussians "mean[age]" and "std[age]", of
        the other families their params ("rate[visits]", "prob[smoker]"), of Bayesian models posterior means; of K-means
        "centroid[age]"; of hidden Markov models "initial" and "to[k]" besides. Numbers in place of names where the data
        had none. What is no number for each component and column, as a correlation, is in `fit.params`.

        Returns:
          A `pandas.DataFrame` of K rows, in the order of the components.

        Raises:
          ModuleNotFoundError: there is no pandas (the `frames` extra).
          TypeError, ValueError: a model without components; a batch of fits.

        Examples:
          >>> import jax, jaxem, pandas
          >>> ages = pandas.DataFrame({"age": [31.0, 33.0, 32.0, 64.0, 68.0, 66.0]})
          >>> fit = jaxem.fit(jaxem.GMM(2), ages, key=jax.random.key(0), num_restarts=4)
          >>> fit.to_frame()["mean[age]"].sort_values().round().tolist()
          [32.0, 66.0]
        """
        return _export.as_frame(self)

    def to_arviz(self, num_draws: int = 1000, *, key: Array) -> Any:
        """Independent draws from the variational posterior of the parameters, for ArviZ's tables and plots.

        Of Bayesian mixtures "weight", of hidden Markov models "initial" and "transition", of both the components'
        "mean" and "covariance", "rate" or "probs", with the names of the columns as coordinates; of `MeanField` models
        the global factors by name. One chain: draws are independent, and r_hat or ess say nothing about q, for which
        there is `jaxem.importance`. Components keep their order: of K! equal modes the draws are of one.

        Args:
          num_draws: S >= 1.
          key: random key.

        Returns:
          An `arviz.InferenceData`, from ArviZ 1.0 on an `xarray.DataTree`, with the group "posterior".

        Raises:
          ModuleNotFoundError: there is no ArviZ (the `arviz` extra).
          TypeError, ValueError: a model without a posterior of its parameters; a batch of fits.
        """
        return _draws.as_arviz(self, num_draws, key)

    def warnings(self) -> list[str]:
        """What a careful reader should know about this fit, in sentences; empty if there is nothing."""
        status, evaluated_only = Status(int(self.status)), self.trace.shape[0] == 1
        asked_for = status == Status.CONVERGED or (status == Status.MAX_STEPS and evaluated_only)
        notes = [] if asked_for else [self.verdict()]
        if not np.isfinite(float(_total(self.elbo))):
            return notes + self.model.notes()
        total, codes = _total(self.restarts.elbo), np.asarray(self.restarts.status)
        higher = int(((codes == Status.MAX_STEPS) & (total > float(_total(self.elbo)) + 0.01)).sum())
        if higher and status == Status.CONVERGED:
            notes.append(f"{higher} restarts stopped at max_steps with a higher objective: raise max_steps")
        if codes.size > 1 and int(self.hits) == 1 and status != Status.DEGENERATE:
            notes.append("only one restart reached this optimum: try more restarts")
        influence = float(self.health.influence)
        if influence > 1e-3 and status != Status.DEGENERATE:
            notes.append(f"a component is near a spike: its influence is {influence:.2g}, of spikes above 0.1")
        notes += self._small_component()
        if bool(self.coincident):
            notes.append("two components are equal: a saddle, or more components than distinct rows")
        if int(self.health.relocated):
            notes.append(f"empty clusters were moved {int(self.health.relocated)} times")
        skipped = int(np.asarray(self.restarts.skipped)[int(self.winner)])
        if skipped:
            notes.append(f"{skipped} updates were skipped: their gradients were not finite")
        return notes + self.model.notes()

    def _small_component(self) -> list[str]:
        """A note where the smallest component has few observations: of itself, or because all weights are small."""
        columns = getattr(getattr(self.params, "components", None), "mean", np.zeros((1, 0))).shape[-1]
        enough, count = 2 * (columns + 1), float(self.health.min_count)
        if not count < enough:
            return []
        total, rows = float(self.total_weight), int(self.num_rows)
        if total < rows and count * rows / total >= enough:
            return [
                f"the weights sum to {total:.3g} over {rows} rows: they are counts here, so multiply them until "
                "they sum to the number of observations"
            ]
        return [f"the smallest component has {count:.3g} observations: fewer components, or a shared covariance"]

    def __repr__(self) -> str:
        if not is_concrete(self) or np.ndim(self.status) > 0:
            return f"Fit(batch of shape {np.shape(self.status)})"
        status, num, steps = Status(int(self.status)), self.restarts.status.shape[0], int(self.num_steps)
        fates = ", ".join(f"{n} {name}" for name, n in self.restarts.counts().items())
        # What an end other than CONVERGED means is the first of the notes; a spike is no optimum to reach.
        ended = f": {status.message}" if status == Status.CONVERGED else ""
        optimum = np.isfinite(float(_total(self.elbo))) and status != Status.DEGENERATE
        lines = [
            f"Fit of {self.model!r} ({self.elbo.data.dtype})",
            f"  elbo      {float(_total(self.elbo)):.6f} nats (data {float(self.elbo.data):.6f}, "
            f"params {float(self.elbo.params):.3g})",
            f"  status    {status.name} after {steps} step{'s' if steps != 1 else ''}{ended}",
            f"  restarts  {num}: {fates}" + (f"; {int(self.hits)} reached this optimum" if optimum else ""),
        ]
        if self.plan is not None:
            lines.append(f"  memory    {self.plan}")
        if self.feature_names is not None:
            lines.append(f"  columns   {_shortened(self.feature_names)}")
        return "\n".join(lines + [f"  note      {note}" for note in self.warnings()])


def _shortened(names: tuple[str, ...]) -> str:
    """Names in one line; the number of them where there are many."""
    shown_names = ", ".join(names[:8])
    return shown_names if len(names) <= 8 and len(shown_names) <= 80 else f"{shown_names[:80]} ... ({len(names)})"


def _total(elbo: ELBO) -> np.ndarray:
    """ELBO.total by numpy: a report must not wait for a sweep that Ctrl-C has left to the device."""
    return np.asarray(elbo.data) + np.asarray(elbo.params)


def check_fit(fit: Any, data: Any = None) -> None:
    """Raises TypeError unless this is a fit, with a remedy where params, or data and fit swapped, are in its place."""
    if isinstance(fit, Fit):
        return
    hint = "; give the fit itself" if has_fields(fit) or isinstance(fit, dict) else ""
    hint = "; the fit comes first, then data" if isinstance(data, Fit) else hint
    raise TypeError(f"fit: expected a Fit, as jaxem.fit returns; found {shown(fit)}{hint}")


# What to do about an end that the model itself has nothing to say about.
_REMEDIES = {
    Status.MAX_STEPS: ["raise max_steps, or loosen the stop rule, as stop=jaxem.Stop(atol=1e-6)"],
    Status.NONFINITE: ["try more restarts, other units of the data or float64"],
    Status.DECREASED: ["try more restarts or float64; of a model of your own, check that m_step maximises"],
    Status.DEGENERATE: ["try more restarts, fewer components or a stronger prior"],
}


class FitError(RuntimeError):
    """No restart of a fit has a finite objective. The `fit` attribute holds what there is, codes included."""

    def __init__(self, fit: Fit, reasons: list[str]):
        self.fit, self.reasons = fit, reasons
        super().__init__(f"no restart has a finite objective ({fit.restarts.counts()}): {'; '.join(reasons)}")

    def __reduce__(self) -> tuple:
        return FitError, (self.fit, self.reasons)  # as it is raised again in another process
