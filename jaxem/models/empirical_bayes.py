"""Empirical Bayes: the settings of a prior estimated by maximising the same ELBO."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import expect, nearest, shown
from jaxem.core.ascent import ascend, check_optimizer
from jaxem.core.constraints import Constraint
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.stages import in_stages
from jaxem.core.tree import PyTree
from jaxem.model import ELBOModel, EStep, Health
from jaxem.rules import Rule
from jaxem.wrappers import InnerAt, Wrapper


@dataclass
class EmpiricalBayesParams:
    """Params of the model inside, and the settings that are estimated.

    Attributes:
      inner: the posterior, params of the model.
      settings: name -> array.
    """

    inner: PyTree
    settings: dict[str, Array]


def _replace(model: Any, path: str, value: Any) -> Any:
    if isinstance(model, Wrapper):
        return dataclasses.replace(model, model=_replace(model.model, path, value))
    name, _, rest = path.partition(".")
    inner = _replace(getattr(model, name), rest, value) if rest else value
    return dataclasses.replace(model, **{name: inner})


@dataclass
class EmpiricalBayesAt(InnerAt):
    """An empirical Bayes model at params: `inner` is the model inside, with the settings there, at its params."""

    def m_step(self, stats: PyTree) -> EmpiricalBayesParams:
        """The posterior's update, then that of the settings."""
        model, settings = self.model, self.params.settings
        found = self.inner.m_step(stats)
        objective = lambda settings: model.elbo_params(EmpiricalBayesParams(found, settings))
        one = jnp.ones((), next(iter(settings.values())).dtype)
        raised = ascend(objective, settings, model.hyperconstraints(), model.optimizer, model.num_steps, one)
        return EmpiricalBayesParams(found, raised)


@dataclass
class EmpiricalBayes(Wrapper):
    """A model with a prior whose settings alpha are estimated too, by maximising the bound on the evidence

        ELBO(q, alpha) <= log of the integral of p(data, z | theta) p(theta | alpha) dz dtheta.

    An M-step updates the posterior and then raises ELBO.params in alpha by a few steps of an optax optimiser in
    unconstrained coordinates, halved back where they would lower it. Neither lowers the ELBO, so it never falls, and
    the fit is one fit: restarts, statuses, weights and chunks as usual. alpha starts at the model's own settings.

    A setting may have no finite optimum: of equal proportions the bound rises in `concentration` without end, by less
    and less, and a prior of as many settings as there are parameters shrinks onto them. Watch `fit.params.settings`.

    Of a `MeanField` model estimate settings by factors `Delta(family)` instead, whose updates are in closed form.

    Attributes:
      model: a model with `hyperparameters()`, as `BayesianMixture`.
      names: which settings, of the keys of `model.hyperparameters()`: ("concentration",), ("prior.rate", ...).
      optimizer: an optax `GradientTransformation`; None for `optax.lbfgs()`.
      num_steps: its updates in one M-step.

    References:
      Beal and Ghahramani (2003), The variational Bayesian EM algorithm for incomplete data; Bishop (2006), section 3.5.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> rng = np.random.default_rng(0)
      >>> x = rng.poisson(rng.gamma(3.0, 2.0, (4, 20))[rng.integers(4, size=300)])
      >>> model = EmpiricalBayes(jaxem.BayesianMixture(jaxem.families.Poisson(), 4), ("prior.shape", "prior.rate"))
      >>> fit = jaxem.fit(model, x, key=jax.random.key(0), num_restarts=4)
      >>> inside, posterior = fit.model.inside(fit.params)  # a BayesianMixture with the estimated prior
      >>> inside.prior.shape.shape
      (20,)
    """

    model: Any
    names: tuple[str, ...] = static()
    optimizer: Any = static(default=None)
    num_steps: int = static(default=5)

    def inside(self, params: EmpiricalBayesParams) -> tuple[Any, PyTree]:
        """The bound model with the estimated settings, out of its wrappers, and its params; for predictions."""
        model, inner = self.with_settings(params)
        return model.inside(inner)

    def with_settings(self, params: EmpiricalBayesParams) -> tuple[Any, PyTree]:
        """The model with the settings of params, and its params."""
        model = dataclasses.replace(self.model, rows=self.rows)
        for name, value in params.settings.items():
            model = _replace(model, name, value)
        return model, params.inner

    params_type: ClassVar[type] = EmpiricalBayesParams

    def hyperconstraints(self) -> dict[str, Constraint]:
        """Constraints of the settings that are estimated, by name."""
        known = self.model.hyperparameters()
        return {name: known[name] for name in self.names}

    def check(self, data: PyTree, params: EmpiricalBayesParams | None = None) -> None:
        """Checks that the model has such settings, and what the model itself checks."""
        expect("model", self.model, ELBOModel, "a model with hyperparameters(), as jaxem.BayesianGMM(3)")
        if params is None:
            self._check_settings()
        self.model.check(data, None if params is None else params.inner)

    def _check_settings(self) -> None:
        if not hasattr(self.model, "hyperparameters"):
            raise TypeError(
                f"model: expected one with hyperparameters(), as BayesianMixture; found {shown(self.model)}"
            )
        if self.model.climbed_by != "m_step":
            raise TypeError(
                f"model: expected one with a closed m_step; found {shown(self.model)}; use Delta factors there"
            )
        if not isinstance(self.names, tuple) or not self.names:
            remedy = f"; write ({self.names!r},)" if isinstance(self.names, str) else ""
            remedy = f"; write {tuple(self.names)}" if isinstance(self.names, list) and self.names else remedy
            raise TypeError(f"names: expected a tuple of at least one name; found {shown(self.names)}{remedy}")
        known = self.model.hyperparameters()
        for name in self.names:
            if name not in known:
                raise ValueError(f"names: expected some of {', '.join(known)}; found {name!r}{nearest(name, known)}")
        check_optimizer(self.optimizer, self.num_steps)

    @in_stages
    def init(self, key: Array, data: PyTree, weights: Array) -> EmpiricalBayesParams:
        """A start of the model inside, with its own settings."""
        settings = {name: jnp.asarray(self.model.setting(name)) for name in self.names}
        return EmpiricalBayesParams(self.model.init(key, data, weights), settings)

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """That of the model inside, which the settings do not enter."""
        model, inner = self.with_settings(params)
        return model.e_step(inner, data, weights, rule)

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """That of the model inside, nats."""
        model, inner = self.with_settings(params)
        return model.elbo_data(inner, data, weights, key)

    def rows_at_once(self, data: PyTree) -> int:
        """Rows of a block of the model inside."""
        return self.model.rows_at_once(data)

    def at(self, params: EmpiricalBayesParams) -> EmpiricalBayesAt:
        """The model at params."""
        model, inner = self.with_settings(params)
        return EmpiricalBayesAt(self, params, model.at(inner))

    def m_step(self, params: EmpiricalBayesParams, stats: PyTree) -> EmpiricalBayesParams:
        """The posterior's update, then that of the settings."""
        return self.at(params).m_step(stats)

    def rebase(self, stats: PyTree, old: EmpiricalBayesParams, new: EmpiricalBayesParams) -> PyTree:
        """That of the model inside."""
        return self.at(old).rebase(stats, self.at(new))

    def elbo_params(self, params: EmpiricalBayesParams) -> Array:
        """That of the model inside with the estimated settings, nats."""
        model, inner = self.with_settings(params)
        return model.elbo_params(inner)

    def constraints(self) -> EmpiricalBayesParams:
        """Those of the model and of the settings."""
        return EmpiricalBayesParams(self.model.constraints(), self.hyperconstraints())  # type: ignore[arg-type]

    def canonical(self, params: EmpiricalBayesParams, reorder: bool | Array = True) -> EmpiricalBayesParams:
        """The model's own order."""
        return EmpiricalBayesParams(self.model.canonical(params.inner, reorder), params.settings)

    def health(self, params: EmpiricalBayesParams) -> Health:
        """That of the model inside."""
        model, inner = self.with_settings(params)
        return model.health(inner)

    def notes(self, params: EmpiricalBayesParams | None = None) -> list[str]:
        """Those of the model inside."""
        return self.model.notes(None if params is None else params.inner)

    def coincident(self, params: EmpiricalBayesParams) -> Array:
        """That of the model inside."""
        return self.model.coincident(params.inner)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"EmpiricalBayes has no {name}; ask the model inside: model, params = fit.model.inside(fit.params)"
        )
