"""Mean-field variational models by autodiff: the user writes two expectations and never an update."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import weigh
from jaxem.core.rows import takes_rows
from jaxem.core.tree import BLOCK_ROWS, PyTree, float_dtype, num_rows, ones_for, sum_rows
from jaxem.expfam import ExponentialFamily
from jaxem.model import EStep, LatentModel
from jaxem.models import probe as _probe
from jaxem.rules import Exact, Rule


class Factor(NamedTuple):
    """One factor q(.) of a mean-field posterior.

    Attributes:
      family: an exponential family of `jaxem.expfam`; `Delta(family)` for a point estimate.
      plate: shape of independent copies, such as (K,).
      dim: D or K of a vector-valued family.
      local: whether each observation has one of its own (its leaves then have a leading axis N); else it is global.
      conjugate: whether the two functions are linear in its means, so that its update is in closed form; where not,
        a global factor climbs by gradients (`CoordinateAscent(optimizer)`).
    """

    family: ExponentialFamily
    plate: tuple[int, ...] = ()
    dim: int = 1
    local: bool = False
    conjugate: bool = True


class MeanField(LatentModel):
    """Mean-field variational inference, q(z) = prod_j q_j(z_j), for a conjugate-exponential model.

    Write three methods:

        factors()                     -> {name: Factor}
        expected_log_lik(means, x)    -> (n,)    E_q[log p(x_n, z_n | globals)] of each row, nats
        expected_log_prior(means)     -> ()      E_q[log p(globals)], nats

    `means` maps names to the factors' mean parameters, E_q[t(z_j)], named tuples such as (x, xx) of a Normal; those of
    local factors have a leading axis n. Both functions must be linear in the means of each factor; then

        log q_j* = E_{i != j}[log p(x, z)] + const    <=>    eta_j* = d E_q[log p] / d means_j

    so every coordinate update is a gradient, and the ELBO, with all constants that the two functions hold, is

        ELBO.data   = sum_n w_n { expected_log_lik_n + entropies of the local factors }
        ELBO.params = expected_log_prior + entropies of the global factors

    Local factors are solved exactly inside the E-step; the params are natural parameters of the global ones. An
    E-step's statistics are d(sum expected_log_lik) / d means, additive over data, so weights and chunks apply. `fit`
    climbs with `CoordinateAscent()`.

    A global factor that is not conjugate is declared with `conjugate=False`: the functions may depend on its means in
    any differentiable way (they determine q, so that E_q[log p] may be a quadrature or a known bound), and its
    parameters climb the same ELBO by an optax optimiser while the others keep their closed forms. `Delta(family)` with
    `conjugate=False` is a point that maximises the ELBO: a hyperparameter of empirical Bayes.

    What `fit` refuses, by name of the factor: a function that is not linear in a factor's means, that couples elements
    of one plate or two local factors (their parallel updates could lower the ELBO), a factor never used, an improper
    prior. It finds out by differentiating at random points, on the first rows of the data.

    Examples:
      A normal with unknown mean and precision:

      >>> import math
      >>> import jaxem
      >>> from jaxem import expfam
      >>> @jaxem.dataclass
      ... class UnknownNormal(MeanField):
      ...     def factors(self):
      ...         return {"mu": Factor(expfam.Normal()), "tau": Factor(expfam.Gamma())}
      ...     def expected_log_lik(self, means, x):
      ...         mu, tau = means["mu"], means["tau"]
      ...         square = x**2 - 2 * x * mu.x + mu.xx
      ...         return 0.5 * (tau.log - math.log(2 * math.pi) - tau.x * square)
      ...     def expected_log_prior(self, means):
      ...         mu = expfam.Normal().natural(0.0, 0.01)
      ...         tau = expfam.Gamma().natural(0.01, 0.01)
      ...         log_mu = expfam.Normal().expected_log_prob(mu, means["mu"])
      ...         return log_mu + expfam.Gamma().expected_log_prob(tau, means["tau"])
      >>> x = jnp.array([4.0, 6.0, 5.0, 7.0, 3.0])
      >>> fit = jaxem.fit(UnknownNormal(), x, key=jax.random.key(0))
      >>> round(float(fit.model.means(fit.params)["mu"].x), 2)
      4.98

    References:
      Winn and Bishop (2005), Variational message passing; Bishop (2006), section 10.4; Hoffman, Blei, Wang and Paisley
      (2013), Stochastic variational inference.
    """

    @abstractmethod
    def factors(self) -> dict[str, Factor]:
        """The factors by name, in the order of their updates."""

    @abstractmethod
    def expected_log_lik(self, means: dict[str, Any], x: PyTree) -> Array:
        """(n,) E_q[log p(x_n, z_n | globals)], z_n the row's local variables."""

    @abstractmethod
    def expected_log_prior(self, means: dict[str, Any]) -> Array:
        """E_q[log p(globals)], a scalar."""

    climbed_by: ClassVar[str] = "coordinates"

    def _named(self, local: bool) -> dict[str, Factor]:
        return {name: factor for name, factor in self.factors().items() if factor.local == local}

    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        """Natural parameters of standard factors; override it where equal elements of a plate must be told apart."""
        dtype = float_dtype(data)
        return {name: f.family.standard(f.dim, f.plate, dtype) for name, f in self._named(local=False).items()}

    def means(self, params: PyTree) -> dict[str, Any]:
        """Mean parameters of the global factors."""
        return {name: factor.family.means(params[name]) for name, factor in self._named(local=False).items()}

    @takes_rows
    def local(self, params: PyTree, x: PyTree) -> dict[str, Any]:
        """Natural parameters of the local factors, optimal given the global ones; leaves (N, ...)."""
        return self._local(self.means(params), x)

    def _local(self, means: dict[str, Any], x: PyTree) -> dict[str, Any]:
        named = self._named(local=True)
        if not named:
            return {}
        num, dtype = num_rows(x), float_dtype(means)
        point = {n: f.family.means(f.family.standard(f.dim, (num, *f.plate), dtype)) for n, f in named.items()}
        # Linear in the local means, so the gradient is the same at any point.
        value = lambda local: jnp.sum(self.expected_log_lik({**means, **local}, x))
        return {n: _symmetrise(named[n].family, g) for n, g in jax.grad(value)(point).items()}

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """Solves the local factors; statistics are gradients of the expected log-likelihood in the global means."""
        if not isinstance(rule, Exact | None):
            raise TypeError(f"rule: a MeanField model has an exact E-step only; found {rule!r}")
        means = self.means(params)

        def block(x: PyTree, w: Array) -> EStep:
            total, gradient = jax.value_and_grad(self._value)(means, x, w)
            return EStep(gradient, total)

        weights = ones_for(data) if weights is None else weights
        return sum_rows(block, data, weights, BLOCK_ROWS)

    def _value(self, means: dict[str, Any], x: PyTree, w: Array) -> Array:
        """ELBO.data of rows. Local factors are at their optimum, so that they carry no derivative."""
        named = self._named(local=True)
        local = self._local(jax.lax.stop_gradient(means), x)
        found = {name: named[name].family.means(natural) for name, natural in local.items()}
        total = jnp.sum(weigh(w, self.expected_log_lik({**means, **found}, x)))
        for name, natural in local.items():
            entropy = named[name].family.entropy(natural)
            total = total + jnp.sum(weigh(w, entropy.reshape(w.shape[0], -1)))
        return total

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """ELBO.data with local factors solved, nats; differentiable in params."""
        weights = ones_for(data) if weights is None else weights
        means = self.means(params)
        return sum_rows(lambda x, w: self._value(means, x, w), data, weights, BLOCK_ROWS)

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """eta_j* of every global factor, each given the others as they are in `params`."""
        named, prior = self._named(local=False), jax.grad(self.expected_log_prior)(self.means(params))
        total = jax.tree.map(jnp.add, stats, prior)
        return {name: _symmetrise(named[name].family, natural) for name, natural in total.items()}

    def elbo_params(self, params: PyTree) -> Array:
        """Expected log prior and entropies of the global factors, nats."""
        total = self.expected_log_prior(self.means(params))
        for name, factor in self._named(local=False).items():
            total = total + jnp.sum(factor.family.entropy(params[name]))
        return total

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks the factors, and that params are natural parameters of them."""
        _probe.check(self, params)


def _symmetrise(family: ExponentialFamily, natural: Any) -> Any:
    """Gradients in matrix statistics, made symmetric."""
    parts = [0.5 * (a + a.swapaxes(-1, -2)) if r == 2 else a for r, a in zip(family.ranks, natural, strict=True)]
    return type(natural)(*parts)
