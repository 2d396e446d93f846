"""Models with a continuous latent whose E-step is by Monte Carlo: importance sampling from a proposal."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import check_integer
from jaxem.core.keys import DRAWS, own_or_fits
from jaxem.core.normal import standard_promotion
from jaxem.core.numerics import weigh
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.tree import PyTree, num_rows, ones_for, sum_blocks
from jaxem.elbo import soften
from jaxem.model import EStep, LatentModel
from jaxem.rules import Rule, key_of


@dataclass
class MonteCarlo(Rule):
    """E-step rule: self-normalised importance sampling of a continuous latent, for a `ContinuousLatent`.

        z_1..z_L ~ q(z | x),   w_s = p(x, z_s | theta) / q(z_s | x)
        E[f(z) | x] is estimated by sum_s resp_s f(z_s),  resp_s = w_s / sum_r w_r;   the value is log mean_s w_s

    `EM(MonteCarlo(key, L))` is Monte Carlo EM. The value is the importance-weighted bound of log p(x), below it in
    expectation and equal for every draw where the proposal is the posterior. The self-normalised moments have a bias of
    order 1 / L, so a fit settles that far from the maximum, and moves about it with a spread of order 1 / sqrt(L N).
    ELBOs are noisy and may fall: no fit stops before max_steps, and the best of many restarts is in part the luckiest.
    A stream of `OnlineEM(rule=MonteCarlo(key, L), average=True).update` over all rows again and again averages over
    steps, and settles (stochastic approximation EM).

    Draws depend on key, restart, step and block of rows, and on nothing else: another block size gives others, so that
    additivity over data holds in distribution only.

    Attributes:
      key: random key; None for that of the fit.
      num_samples: L >= 1, draws for each datum.

    References:
      Wei and Tanner (1990), A Monte Carlo implementation of the EM algorithm, JASA 85; Levine and Casella (2001),
      Implementations of the Monte Carlo EM algorithm, for importance weights; Delyon, Lavielle and Moulines (1999),
      Convergence of a stochastic approximation version of the EM algorithm.
    """

    key: Array | None = None
    num_samples: int = static(default=100)

    def prepare(self, key: Array | None, num_steps: int) -> "MonteCarlo":
        """The rule with its key, or that of the fit; raises where that or the number of samples is none."""
        check_integer("num_samples", self.num_samples, 1)
        return MonteCarlo(own_or_fits(self.key, key, DRAWS), self.num_samples)

    def fold(self, number: Any) -> "MonteCarlo":
        """The rule with draws of its own."""
        return MonteCarlo(jax.random.fold_in(key_of(self), number), self.num_samples)

    def at(self, step: Array) -> "MonteCarlo":
        """The rule with draws of the step's own."""
        return self.fold(step)

    def settled(self, step: Array) -> Array:
        """False: a small change between noisy steps tells nothing."""
        return jnp.asarray(False)

    def monotone(self, step: Array) -> Array:
        """False."""
        return jnp.asarray(False)

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """Raises TypeError: a latent that can be enumerated is not sampled by this rule."""
        raise TypeError(
            "rule: MonteCarlo draws a continuous latent, of a ContinuousLatent model; for states that can be "
            "enumerated use Exact() or Sampled(key)"
        )

    def draw(self, q: Any) -> Array:
        """(L, n, ...) draws from a proposal for a block of data."""
        with standard_promotion():
            return q.sample(seed=key_of(self), sample_shape=(self.num_samples,))


class ContinuousLatent(LatentModel):
    """A latent variable z without a closed posterior: write five methods, and Monte Carlo EM follows.

        init(key, data, weights)             -> params
        log_joint(params, data, z)           -> (n,)    log p(x_n, z_n | theta), nats; z (n, Q), or (n,) for a scalar
        proposal(params, data)               -> q       a distribution with batch shape (n,): `DiagonalNormal`, distrax
        statistics(params, data, z, resp)    -> pytree  sum_n of resp-weighted complete-data statistics; resp (n,)
        m_step(params, stats)                -> params

    Log-joint and statistics are vmapped over the L draws. The fit needs a rule with a key:
    `jaxem.EM(jaxem.MonteCarlo(key, L))`.

    The proposal must have heavier tails than the posterior, or be close to it: its draws are weighted by
    p(x, z) / q(z | x), and where that has no variance neither moments nor bounds are to be trusted. The prior is always
    allowed and good where the data say little; a Laplace approximation, or an encoder already trained, is better.

    Draws where the log-joint is -inf have weight 0. A datum whose draws all have weight 0 counts them equally and makes
    ELBO.data -inf, which ends a restart as NONFINITE; so does a NaN. Time O(L N) log-joints and statistics a step,
    memory O(L x rows of a block).

    Examples:
      Counts whose log-rates vary, x ~ Poisson(exp(m + s z)), z ~ N(0, 1), s = 0.5 known:

      >>> import jaxem
      >>> @jaxem.dataclass
      ... class LogNormalRates(ContinuousLatent):
      ...     def init(self, key, data, weights):
      ...         return {"m": jnp.zeros((), data.dtype)}
      ...     def log_joint(self, params, data, z):
      ...         rate = jnp.exp(params["m"] + 0.5 * z[:, 0])
      ...         prior = jax.scipy.stats.norm.logpdf(z[:, 0])
      ...         return jax.scipy.stats.poisson.logpmf(data, rate) + prior
      ...     def proposal(self, params, data):
      ...         zero = jnp.zeros((data.shape[0], 1), data.dtype)
      ...         return jaxem.DiagonalNormal(zero, zero)
      ...     def statistics(self, params, data, z, resp):
      ...         return {"count": resp @ data, "exposure": resp @ jnp.exp(0.5 * z[:, 0])}
      ...     def m_step(self, params, stats):
      ...         return {"m": jnp.log(stats["count"] / stats["exposure"])}
      >>> data = jnp.array([3.0, 5, 2, 9, 4, 1, 6, 3, 12, 5])
      >>> algorithm = jaxem.EM(MonteCarlo(jax.random.key(0), 2000))
      >>> fit = jaxem.fit(LogNormalRates(), data, key=jax.random.key(1), algorithm=algorithm, max_steps=20)
      >>> print(fit.params["m"].round(1))
      1.5
    """

    # Rows per block; None: the whole data at once.
    block_rows: ClassVar[int | None] = None
    # Draws for each datum in `elbo_data`, which is given a key and no rule.
    num_samples: ClassVar[int] = 100

    @abstractmethod
    def log_joint(self, params: PyTree, data: PyTree, z: Array) -> Array:
        """(n,) log p(x_n, z_n | theta), nats, for one z a row."""

    @abstractmethod
    def proposal(self, params: PyTree, data: PyTree) -> Any:
        """The distribution that z is drawn from, one for each row; positive wherever the posterior is."""

    @abstractmethod
    def statistics(self, params: PyTree, data: PyTree, z: Array, resp: Array) -> PyTree:
        """Complete-data statistics at z, weighted by resp (n,) (weights included), summed over rows; linear in resp."""

    def default_rule(self) -> Rule:
        """Raises TypeError: a rule that draws needs a key, and there is no default one."""
        raise TypeError(
            f"algorithm: {type(self).__name__} has a latent that is drawn; expected a rule with a key, as "
            "jaxem.EM(jaxem.MonteCarlo(key, num_samples=100)); found none"
        )

    def _weighted(self, params: PyTree, data: PyTree, rule: MonteCarlo) -> tuple[Array, Array, Array]:
        """(draws (L, n, ...), value (n,) in nats, their normalised weights (L, n))."""
        q = self.proposal(params, data)
        name = type(self).__name__
        if q is None:
            raise TypeError(f"{name}.proposal: expected a distribution; found None; does it end with a return?")
        z = rule.draw(q)
        log_joint = jax.vmap(lambda z: self.log_joint(params, data, z))(z)
        if log_joint is None:
            raise TypeError(
                f"{name}.log_joint: expected one value for each of data; found None; does it end with a return?"
            )
        with standard_promotion():
            log_q = jax.vmap(q.log_prob)(z)
        for method, found in (("log_joint", log_joint), ("proposal(...).log_prob", log_q)):
            if found.shape != (rule.num_samples, num_rows(data)):
                raise ValueError(
                    f"{name}.{method}: expected shape ({num_rows(data)},), one value for each of data; "
                    f"found {found.shape[1:]}"
                )
        log_weight = log_joint - log_q.astype(log_joint.dtype)
        value, resp, _ = soften(log_weight, jnp.ones((), log_weight.dtype), 0)
        return z, value - math.log(rule.num_samples), resp

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """Statistics by importance sampling, and the importance-weighted bound of log p(x), nats.

        Args:
          params: theta; the proposal is taken there too.
          data: observations.
          weights: (N,) or None for ones; a row of weight w has one set of draws, counted w times.
          rule: a `MonteCarlo`.

        Returns:
          `EStep`.

        Raises:
          TypeError: the rule is no `MonteCarlo`.
          ValueError: a method gives another shape than one value for each row.
        """
        rule = self.default_rule() if rule is None else rule
        if not isinstance(rule, MonteCarlo):
            raise TypeError(f"rule: {type(self).__name__} needs a jaxem.MonteCarlo(key, num_samples); found {rule!r}")

        def block(x: PyTree, w: Array, number: Any) -> EStep:
            z, value, resp = self._weighted(params, x, rule.fold(number))
            each = jax.vmap(lambda z, r: self.statistics(params, x, z, weigh(w, r)))(z, resp)
            return EStep(jax.tree.map(lambda a: jnp.sum(a, 0), each), jnp.sum(weigh(w, value)))

        weights = ones_for(data) if weights is None else weights
        return sum_blocks(block, data, weights, self.block_rows or max(1, num_rows(data)))

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """The importance-weighted bound with `num_samples` draws, nats; differentiable where the draws are.

        Raises:
          TypeError: there is no key.
        """
        if key is None:
            raise TypeError(f"key: {type(self).__name__}.elbo_data draws the latent; expected a random key; found None")
        weights = ones_for(data) if weights is None else weights
        rule = MonteCarlo(key, self.num_samples)
        bound = lambda x, w, number: jnp.sum(weigh(w, self._weighted(params, x, rule.fold(number))[1]))
        return sum_blocks(bound, data, weights, self.block_rows or max(1, num_rows(data)))
