"""Monte Carlo estimators of the ELBO and of its gradient, for any q and log-joint."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import check_integer, check_number
from jaxem.core.normal import kl_divergence, standard_promotion
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.elbo import free_energy, soften

LogLik = Callable[[Array], Array]


@dataclass
class Estimator(ABC):
    """A Monte Carlo estimate of the ELBO whose `jax.grad` is a stated estimator of the ELBO's gradient.

        value_n = estimate of  E_q[log p(x_n | z) + log p(z) - log q(z | x_n)],   z_1..z_L ~ q(z | x_n)

    Differentiate the (weighted) sum of the values in whatever q, `log_lik` and `prior` were computed from: an encoder,
    a decoder, parameters of q for each datum. Below, phi are the parameters of q, theta all the others. Each
    gradient is unbiased (that of `IWAE` for its own bound), which makes it fit for stochastic gradient ascent; only the
    first derivative is meant. Cost: L evaluations of log_lik.

    Non-finite log-densities are not hidden. A sample where log p(x, z) is -inf makes that datum's value -inf, and a NaN
    makes it NaN, but for `IWAE`, where a sample of -inf has weight 0. Other data's values are not touched; gradients in
    parameters that the datum shares with others may be NaN, so check them before an update.

    Attributes:
      num_samples: L >= 1, draws of z for each datum.
    """

    num_samples: int = static(default=1)

    @abstractmethod
    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """One value for each datum.

        Args:
          key: random key of the draws.
          q: the distribution of z for each datum, batch shape (n,) and event shape (Q,) or (): a `DiagonalNormal`, or
            anything with the methods `sample(seed=, sample_shape=)` and `log_prob(value)` of a distrax distribution.
          log_lik: z (n, Q), or (n,) for a scalar event, to (n,) log p(x_n | z_n), nats; vmapped over the samples.
            Without `prior` it is all of log p(x_n, z_n).
          prior: the distribution of z, with a `log_prob` and batch shape () or (n,); None if log_lik contains it.

        Returns:
          (n,) nats.

        Raises:
          TypeError: q or prior does not suit the estimator.
          ValueError: log_lik, or a log_prob, gives another shape than (n,).
        """

    def update(self, value: Array) -> "Estimator":
        """The estimator after a minibatch whose mean value was `value`: itself, but for a running baseline."""
        return self

    def validate(self, prior: Any) -> None:
        """Raises where the settings are unsound, or the prior does not suit; called on the host, before compilation."""
        check_integer("num_samples", self.num_samples, 1)


@dataclass
class ScoreFunction(Estimator):
    """The score-function estimator (REINFORCE): works for any q, discrete ones too.

        w_s = log p(x, z_s) - log q(z_s),   value = mean_s w_s
        phi gets mean_s (w_s - b_s) grad log q(z_s),   theta gets mean_s grad log p(x, z_s);   z_s carries no gradient

    Unbiased for any baseline b_s that does not depend on z_s, since E_q[grad log q] = 0. Without `baseline` it
    is the mean of the *other* samples' w ("leave-one-out"), for one sample 0. Its variance grows with the spread of w,
    so it is large far from the posterior; at the posterior w is log p(x) for every z, and with leave-one-out the
    variance is 0.

    Attributes:
      num_samples: L >= 1.
      baseline: None for leave-one-out; or a running baseline, as the number that it starts from (0.0), which `update`
        moves towards the mean value of each minibatch. () or (n,); it carries no gradient.
      decay: share of the running baseline that one update keeps, 0 to 1.

    Examples:
      >>> from jaxem import DiagonalNormal
      >>> estimator, prior = ScoreFunction(num_samples=2000), DiagonalNormal.standard(1)
      >>> log_lik = lambda z: -0.5 * jnp.sum((z - 1) ** 2, -1)
      >>> elbo = lambda q: estimator(jax.random.key(0), q, log_lik, prior).sum()
      >>> gradient = jax.grad(elbo)(DiagonalNormal(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
      >>> print(gradient.loc.round(1))  # exactly 1
      [[1.]]

    References:
      Williams (1992), Simple statistical gradient-following algorithms, Machine Learning 8; Mnih and Rezende (2016),
      Variational inference for Monte Carlo objectives, section 2; Kool et al. (2019), Buy 4 REINFORCE samples, get a
      baseline for free.
    """

    baseline: float | Array | None = None
    decay: float | Array = 0.9

    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """(n,) values, nats; see `Estimator`."""
        z = jax.lax.stop_gradient(_sample(q, key, self.num_samples))
        log_joint, log_q = _log_joint(z, log_lik, prior), _log_prob("q.log_prob", q, z)
        log_weight = log_joint - log_q
        signal = jax.lax.stop_gradient(self._centred(log_weight))
        # -grad log q of the ELBO itself has mean 0: it would be a baseline of 1.
        return _with_gradient_of(jnp.mean(log_weight, 0), jnp.mean(log_joint + signal * log_q, 0))

    def _centred(self, log_weight: Array) -> Array:
        """Log-weights (L, n) less their baselines."""
        num = self.num_samples
        if self.baseline is not None:
            baseline = jnp.asarray(self.baseline, log_weight.dtype)
            return log_weight - jnp.broadcast_to(baseline, log_weight.shape)
        if num == 1:
            return log_weight
        return (log_weight - jnp.mean(log_weight, 0, keepdims=True)) * (num / (num - 1))

    def update(self, value: Array) -> "ScoreFunction":
        """The estimator with its running baseline moved towards `value`, if there is one and the value is finite."""
        if self.baseline is None:
            return self
        value = jnp.asarray(value)
        old, decay = (jnp.asarray(a, value.dtype) for a in (self.baseline, self.decay))
        moved = decay * old + (1 - decay) * value
        return ScoreFunction(self.num_samples, jnp.where(jnp.isfinite(moved), moved, old), self.decay)

    def validate(self, prior: Any) -> None:
        """Checks the number of samples, the baseline and its decay."""
        super().validate(prior)
        decay, baseline = self.decay, self.baseline
        check_number("decay", decay, 0, 1)
        if baseline is not None and is_concrete(baseline):
            what = "None, or the number to start from"
            check_number("baseline", baseline, dims=(0, 1), what=what, each="a finite number")


@dataclass
class SGVBA(Estimator):
    """The reparameterised estimator with every term sampled ("estimator A").

        value = mean_s {log p(x, z_s) - log q(z_s)},   z_s = g(noise_s, phi);   the gradient is that of the value

    Needs a q whose samples are differentiable in phi, and a log-joint differentiable in z. The gradient has two parts
    in phi: the path through z, and -grad log q at fixed z, whose mean is 0. `SGVBB` replaces the second, and the prior,
    by an exact KL, `StickingTheLanding` drops it.

    Attributes:
      num_samples: L >= 1.

    Examples:
      >>> from jaxem import DiagonalNormal
      >>> q = DiagonalNormal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
      >>> log_joint = lambda z: DiagonalNormal.standard(2).log_prob(z) - 1.5
      >>> print(SGVBA()(jax.random.key(0), q, log_joint).round(4))
      [-1.5]

    References:
      Kingma and Welling (2014), Auto-encoding variational Bayes, eq. 6.
    """

    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """(n,) values, nats; see `Estimator`."""
        z = _reparameterised(self, q, key)
        return jnp.mean(_log_joint(z, log_lik, prior) - _log_prob("q.log_prob", q, z), 0)


@dataclass
class SGVBB(Estimator):
    """The reparameterised estimator with an analytic KL ("estimator B"): the default for a VAE.

        value = mean_s log p(x | z_s) - KL(q || p(z)),   z_s = g(noise_s, phi);   the gradient is that of the value

    Needs a prior, and a closed form of KL(q || prior): two `DiagonalNormal`s, or distrax distributions that know it. A
    mixture has none, and is refused. Its variance is the lowest where q is near the prior; near a posterior that is far
    from the prior `SGVBA` may have less, because there the sampled prior and entropy cancel the noise of log_lik.

    Attributes:
      num_samples: L >= 1.

    Examples:
      >>> from jaxem import DiagonalNormal
      >>> q, prior = DiagonalNormal(jnp.ones((1, 2)), jnp.zeros((1, 2))), DiagonalNormal.standard(2)
      >>> SGVBB()(jax.random.key(0), q, lambda z: jnp.zeros(1), prior).tolist()
      [-1.0]

    References:
      Kingma and Welling (2014), Auto-encoding variational Bayes, eq. 7.
    """

    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """(n,) values, nats; see `Estimator`."""
        self.validate(prior)
        z = _reparameterised(self, q, key)
        expected = jnp.mean(_log_joint(z, log_lik, None), 0)
        try:
            kl = kl_divergence(q, prior)
        except NotImplementedError as error:
            raise TypeError(self._refusal(f"found {type(q).__name__} and {type(prior).__name__}")) from error
        return expected - jnp.broadcast_to(kl, expected.shape).astype(expected.dtype)

    def _refusal(self, found: str) -> str:
        return (
            f"prior: SGVBB needs a prior with a closed KL(q || prior); {found}; use SGVBA(), StickingTheLanding() or "
            "IWAE(), which sample it"
        )

    def validate(self, prior: Any) -> None:
        """Raises TypeError for no prior, and for one without a closed KL, as a mixture."""
        super().validate(prior)
        name = type(prior).__name__
        if prior is None:
            raise TypeError(self._refusal("found None"))
        if "Mixture" in name or not hasattr(prior, "kl_divergence"):
            raise TypeError(self._refusal(f"found {name}, which has none"))


@dataclass
class StickingTheLanding(Estimator):
    """The reparameterised estimator without its score term: the variance goes to 0 as q reaches the posterior.

        value = mean_s {log p(x, z_s) - log q(z_s)},   z_s = g(noise_s, phi)
        phi gets only the path: mean_s d/dz {log p(x, z) - log q(z)} dz_s / dphi

    The score dropped has mean 0, so the gradient stays unbiased; where q = p(z | x) the rest is 0 for every sample.

    Attributes:
      num_samples: L >= 1.

    Examples:
      >>> from jaxem import DiagonalNormal
      >>> normal = DiagonalNormal.standard(2)
      >>> elbo = lambda q: StickingTheLanding()(jax.random.key(0), q, normal.log_prob).sum()
      >>> print(jax.grad(elbo)(DiagonalNormal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))).loc + 0)
      [[0. 0.]]

    References:
      Roeder, Wu and Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for variational
      inference.
    """

    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """(n,) values, nats; see `Estimator`."""
        z = _reparameterised(self, q, key)
        return jnp.mean(_log_joint(z, log_lik, prior) - _held_log_prob(q, z), 0)


@dataclass
class IWAE(Estimator):
    """The importance-weighted bound, which rises with the number of samples from the ELBO towards log p(x).

        w_s = p(x, z_s) / q(z_s),   value = log mean_s w_s,   z_s = g(noise_s, phi)

    With v_s = w_s / sum_r w_r the gradient of the value gives theta sum_s v_s grad log w_s, and phi the same by the
    chain rule. `doubly_reparameterised` gives phi another unbiased estimator of the same gradient

        sum_s v_s^2 (d log w_s / dz) (dz_s / dphi)

    whose signal does not sink in the noise as L grows. One sample is `SGVBA`, or `StickingTheLanding` where doubly
    reparameterised. Samples of weight 0 take no part; where all have weight 0 the value is -inf.

    Attributes:
      num_samples: L >= 1.
      doubly_reparameterised: whether phi gets v^2 (part of the program).

    Examples:
      >>> from jaxem import DiagonalNormal
      >>> q = DiagonalNormal(jnp.zeros((2000, 1)), jnp.zeros((2000, 1)))
      >>> log_joint = lambda z: DiagonalNormal(jnp.ones(1), jnp.zeros(1)).log_prob(z)  # p(x) = 1, KL = 1/2
      >>> bound = lambda num: IWAE(num)(jax.random.key(0), q, log_joint).mean()
      >>> print(jnp.stack([bound(num) for num in (1, 5, 100)]).round(1) + 0)
      [-0.5 -0.1  0. ]

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Tucker, Lawson, Gu and Maddison (2019),
      Doubly reparameterized gradient estimators for Monte Carlo objectives, eq. 7.
    """

    doubly_reparameterised: bool = static(default=False)

    def __call__(self, key: Array, q: Any, log_lik: LogLik, prior: Any = None) -> Array:
        """(n,) values, nats; see `Estimator`."""
        z = _reparameterised(self, q, key)
        if self.doubly_reparameterised:
            log_weight = lambda z: _log_joint(z, log_lik, prior) - _held_log_prob(q, z)
            # The same log-weights as below, which a compiler finds out: no second evaluation where it is jitted.
            same = jax.lax.stop_gradient(log_weight(z))
            z = _scale_gradient(z, soften(same, jnp.ones((), same.dtype), 0)[1])
        else:
            log_weight = lambda z: _log_joint(z, log_lik, prior) - _log_prob("q.log_prob", q, z)
        return free_energy(log_weight(z), axis=0) - math.log(self.num_samples)


def _sample(q: Any, key: Array, num: int) -> Array:
    with standard_promotion():
        return q.sample(seed=key, sample_shape=(num,))


def _reparameterised(estimator: Estimator, q: Any, key: Array) -> Array:
    """Samples (L, n, ...) that carry the gradient of q's parameters."""
    z = _sample(q, key, estimator.num_samples)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(
            f"q: {type(estimator).__name__} differentiates through the samples of q; found {type(q).__name__}, whose "
            f"samples are {z.dtype}; use ScoreFunction()"
        )
    return z


def _log_prob(name: str, distribution: Any, z: Array) -> Array:
    """(L, n) log density of samples (L, n, ...)."""
    with standard_promotion():
        return _checked(name, jax.vmap(distribution.log_prob)(z), z)


def _log_joint(z: Array, log_lik: LogLik, prior: Any) -> Array:
    """(L, n) log p(x, z), or log p(x | z) without a prior, at samples (L, n, ...)."""
    found = _checked("log_lik", jax.vmap(log_lik)(z), z)
    if prior is None:
        return found
    return found + _log_prob("prior.log_prob", prior, z).astype(found.dtype)


def _checked(name: str, found: Array, z: Array) -> Array:
    if found.shape != z.shape[:2]:
        raise ValueError(f"{name}: expected shape {z.shape[1:2]}, one value for each datum; found {found.shape[1:]}")
    return found


def _held_log_prob(q: Any, z: Array) -> Array:
    """(L, n) log q(z) at samples (L, n, ...), differentiable in them and not in q's parameters.

    From the slope in z, because holding the leaves of q is not safe: distrax's MultivariateNormalDiag also reaches its
    scale through a closure, and a gradient with half of the score in it is biased.
    """
    log_q, pull = jax.vjp(lambda z: _log_prob("q.log_prob", q, z), jax.lax.stop_gradient(z))
    log_q, (slope,) = jax.lax.stop_gradient((log_q, pull(jnp.ones_like(log_q))))
    return _with_gradient_of(log_q, jnp.sum(slope * z, tuple(range(2, z.ndim))))


@jax.custom_jvp
def _with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, with the derivatives of `surrogate`."""
    return value


@_with_gradient_of.defjvp
def _with_gradient_of_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], tangents[1]


@jax.custom_jvp
def _scale_gradient(z: Array, scale: Array) -> Array:
    """Samples z (L, n, ...) as they are, with their derivatives times `scale` (L, n)."""
    return z


@_scale_gradient.defjvp
def _scale_gradient_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    z, scale = primals
    return z, tangents[0] * scale.reshape(scale.shape + (1,) * (z.ndim - scale.ndim))
