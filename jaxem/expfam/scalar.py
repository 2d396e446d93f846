"""Exponential families of one real variable, and the normal-gamma pair."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln

from jaxem.core import constraints
from jaxem.expfam import formulas
from jaxem.expfam.family import LOG_2PI, ExponentialFamily, as_floats


class NormalStatistics(NamedTuple):
    """Statistics x and x^2."""

    x: Array
    xx: Array


class Normal(ExponentialFamily):
    """Normal distribution with mean and precision; natural (precision mean, -precision / 2).

    Examples:
      >>> eta = Normal().natural(mean=1.0, precision=4.0)
      >>> [round(float(m), 6) for m in Normal().means(eta)]
      [1.0, 1.25]
    """

    Statistics, ranks = NormalStatistics, (0, 0)
    domains: ClassVar[dict[str, Any]] = {"mean": constraints.Real(), "precision": constraints.Positive()}

    def natural(self, mean: Any, precision: Any) -> NormalStatistics:
        """Natural parameters from mean and precision."""
        mean, precision = as_floats((0, 0), mean, precision)
        return NormalStatistics(precision * mean, -0.5 * precision)

    def conventional(self, natural: NormalStatistics) -> dict[str, Array]:
        """Mean and precision."""
        return {"mean": -0.5 * natural.x / natural.xx, "precision": -2 * natural.xx}

    def log_normaliser(self, natural: NormalStatistics) -> Array:
        """A = precision mean^2 / 2 - log(precision) / 2."""
        return -0.25 * natural.x**2 / natural.xx - 0.5 * jnp.log(-2 * natural.xx)

    def valid(self, natural: NormalStatistics) -> Array:
        """Whether the precision is positive."""
        return jnp.isfinite(natural.x) & (natural.xx < 0)

    def log_base(self, natural: NormalStatistics) -> float:
        """Log h = -log(2 pi) / 2."""
        return -0.5 * LOG_2PI

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Mean 0, precision 1."""
        one = jnp.ones(plate, dtype)
        return self.natural(0 * one, one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mean."""
        mean = self.conventional(natural)["mean"]
        return NormalStatistics(mean, mean**2)

    def draw(self, key: Array, natural: NormalStatistics) -> NormalStatistics:
        """Statistics of a draw."""
        params = self.conventional(natural)
        x = params["mean"] + jax.random.normal(key, natural.x.shape, natural.x.dtype) / jnp.sqrt(params["precision"])
        return NormalStatistics(x, x**2)

    def distribution(self, natural: NormalStatistics) -> Any:
        """A `distrax.Normal`."""
        import distrax

        params = self.conventional(natural)
        return distrax.Normal(params["mean"], params["precision"] ** -0.5)


class GammaStatistics(NamedTuple):
    """Statistics x and log x."""

    x: Array
    log: Array


class Gamma(ExponentialFamily):
    """Gamma distribution with shape and rate; natural (-rate, shape - 1).

    Shapes far below 1 lose digits in shape - 1: in float32 a shape of 1e-6 is known to a few percent, which shifts
    log-normalisers by as much; use float64, or vague priors of a larger shape.
    """

    Statistics, ranks = GammaStatistics, (0, 0)
    domains: ClassVar[dict[str, Any]] = {"shape": constraints.Positive(), "rate": constraints.Positive()}

    def natural(self, shape: Any, rate: Any) -> GammaStatistics:
        """Natural parameters from shape and rate."""
        shape, rate = as_floats((0, 0), shape, rate)
        return GammaStatistics(-rate, shape - 1)

    def conventional(self, natural: GammaStatistics) -> dict[str, Array]:
        """Shape and rate."""
        return {"shape": natural.log + 1, "rate": -natural.x}

    def log_normaliser(self, natural: GammaStatistics) -> Array:
        """A = log Gamma(shape) - shape log rate."""
        return formulas.gamma_log_normaliser(natural.log + 1, -natural.x)

    def kl(self, natural: Any, other: Any) -> Array:
        """KL(p(. | natural) || p(. | other)), nats, which keeps its digits for large shapes."""
        return formulas.gamma_kl(natural.log + 1, -natural.x, other.log + 1, -other.x)

    def valid(self, natural: GammaStatistics) -> Array:
        """Whether shape and rate are positive."""
        return (natural.log > -1) & (natural.x < 0)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Shape 2, rate 2: mean 1, with a mode."""
        one = jnp.ones(plate, dtype)
        return self.natural(2 * one, 2 * one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mode (shape - 1) / rate, for shape > 1."""
        mode = -natural.log / natural.x
        return GammaStatistics(mode, jnp.log(mode))

    def draw(self, key: Array, natural: GammaStatistics) -> GammaStatistics:
        """Statistics of a draw; its logarithm is finite where a small shape makes x underflow."""
        log = formulas.gamma_draw(key, natural.log + 1, -natural.x)
        return GammaStatistics(jnp.exp(log), log)

    def distribution(self, natural: GammaStatistics) -> Any:
        """A `distrax.Gamma`."""
        import distrax

        params = self.conventional(natural)
        return distrax.Gamma(params["shape"], params["rate"])


class InverseGammaStatistics(NamedTuple):
    """Statistics 1 / x and log x."""

    inverse: Array
    log: Array


class InverseGamma(ExponentialFamily):
    """Inverse-gamma distribution with shape and scale; natural (-scale, -shape - 1)."""

    Statistics, ranks = InverseGammaStatistics, (0, 0)
    domains: ClassVar[dict[str, Any]] = {"shape": constraints.Positive(), "scale": constraints.Positive()}

    def natural(self, shape: Any, scale: Any) -> InverseGammaStatistics:
        """Natural parameters from shape and scale."""
        shape, scale = as_floats((0, 0), shape, scale)
        return InverseGammaStatistics(-scale, -shape - 1)

    def conventional(self, natural: InverseGammaStatistics) -> dict[str, Array]:
        """Shape and scale."""
        return {"shape": -natural.log - 1, "scale": -natural.inverse}

    def log_normaliser(self, natural: InverseGammaStatistics) -> Array:
        """A = log Gamma(shape) - shape log scale."""
        return formulas.gamma_log_normaliser(-natural.log - 1, -natural.inverse)

    def valid(self, natural: InverseGammaStatistics) -> Array:
        """Whether shape and scale are positive."""
        return (natural.log < -1) & (natural.inverse < 0)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Shape 2, scale 1."""
        one = jnp.ones(plate, dtype)
        return self.natural(2 * one, one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mode scale / (shape + 1)."""
        mode = natural.inverse / natural.log
        return InverseGammaStatistics(1 / mode, jnp.log(mode))

    def draw(self, key: Array, natural: InverseGammaStatistics) -> InverseGammaStatistics:
        """Statistics of a draw."""
        log = -formulas.gamma_draw(key, -natural.log - 1, -natural.inverse)
        return InverseGammaStatistics(jnp.exp(-log), log)

    def distribution(self, natural: InverseGammaStatistics) -> Any:
        """The reciprocal of a `distrax.Gamma`, as a TensorFlow Probability `InverseGamma`."""
        from tensorflow_probability.substrates.jax import distributions

        params = self.conventional(natural)
        return distributions.InverseGamma(params["shape"], params["scale"])


class BetaStatistics(NamedTuple):
    """Statistics log x and log(1 - x)."""

    log: Array
    log1m: Array


class Beta(ExponentialFamily):
    """Beta distribution with counts a and b; natural (a - 1, b - 1)."""

    Statistics, ranks = BetaStatistics, (0, 0)
    domains: ClassVar[dict[str, Any]] = {"a": constraints.Positive(), "b": constraints.Positive()}

    def natural(self, a: Any, b: Any) -> BetaStatistics:
        """Natural parameters from a and b."""
        a, b = as_floats((0, 0), a, b)
        return BetaStatistics(a - 1, b - 1)

    def conventional(self, natural: BetaStatistics) -> dict[str, Array]:
        """The counts a and b."""
        return {"a": natural.log + 1, "b": natural.log1m + 1}

    def log_normaliser(self, natural: BetaStatistics) -> Array:
        """A = log B(a, b)."""
        return betaln(natural.log + 1, natural.log1m + 1)

    def valid(self, natural: BetaStatistics) -> Array:
        """Whether both counts are positive."""
        return (natural.log > -1) & (natural.log1m > -1)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Both counts 2: with a mode."""
        one = jnp.ones(plate, dtype)
        return self.natural(2 * one, 2 * one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mode (a - 1) / (a + b - 2), for a, b > 1."""
        mode = natural.log / (natural.log + natural.log1m)
        return BetaStatistics(jnp.log(mode), jnp.log1p(-mode))

    def draw(self, key: Array, natural: BetaStatistics) -> BetaStatistics:
        """Statistics of a draw, exact near 0 and 1."""
        return BetaStatistics(*formulas.beta_draw(key, natural.log + 1, natural.log1m + 1))

    def distribution(self, natural: BetaStatistics) -> Any:
        """A `distrax.Beta`."""
        import distrax

        params = self.conventional(natural)
        return distrax.Beta(params["a"], params["b"])


class BernoulliStatistics(NamedTuple):
    """Statistic x in {0, 1}; the natural parameter is the log-odds."""

    x: Array


class Bernoulli(ExponentialFamily):
    """Bernoulli distribution with probability of 1."""

    Statistics, ranks = BernoulliStatistics, (0,)
    domains: ClassVar[dict[str, Any]] = {"prob": constraints.UnitInterval()}

    def natural(self, prob: Any) -> BernoulliStatistics:
        """Log-odds from the probability."""
        (prob,) = as_floats((0,), prob)
        return BernoulliStatistics(jnp.log(prob) - jnp.log1p(-prob))

    def conventional(self, natural: BernoulliStatistics) -> dict[str, Array]:
        """The probability."""
        return {"prob": jax.nn.sigmoid(natural.x)}

    def log_normaliser(self, natural: BernoulliStatistics) -> Array:
        """A = log(1 + exp(log-odds))."""
        return jax.nn.softplus(natural.x)

    def valid(self, natural: BernoulliStatistics) -> Array:
        """Whether the log-odds are finite."""
        return jnp.isfinite(natural.x)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Probability 1 / 2."""
        return BernoulliStatistics(jnp.zeros(plate, dtype))

    def at_mode(self, natural: Any) -> Any:
        """The more probable value, 0 in a tie."""
        return BernoulliStatistics((natural.x > 0).astype(natural.x.dtype))

    def draw(self, key: Array, natural: BernoulliStatistics) -> BernoulliStatistics:
        """A draw: whether logistic noise is below the log-odds."""
        noise = jax.random.logistic(key, natural.x.shape, natural.x.dtype)
        return BernoulliStatistics((noise < natural.x).astype(natural.x.dtype))

    def distribution(self, natural: BernoulliStatistics) -> Any:
        """A `distrax.Bernoulli`."""
        import distrax

        return distrax.Bernoulli(logits=natural.x)


class NormalGammaStatistics(NamedTuple):
    """Statistics of (mean, precision): precision, its log, precision * mean, precision * mean^2."""

    precision: Array
    log_precision: Array
    weighted_mean: Array
    weighted_square: Array


class NormalGamma(ExponentialFamily):
    """Precision ~ Gamma(shape, rate), mean | precision ~ Normal(location, 1 / (strength precision))."""

    Statistics, ranks = NormalGammaStatistics, (0, 0, 0, 0)
    domains: ClassVar[dict[str, Any]] = {
        "location": constraints.Real(),
        "strength": constraints.Positive(),
        "shape": constraints.Positive(),
        "rate": constraints.Positive(),
    }

    def natural(self, location: Any, strength: Any, shape: Any, rate: Any) -> NormalGammaStatistics:
        """Natural parameters from location, strength, shape and rate."""
        location, strength, shape, rate = as_floats((0, 0, 0, 0), location, strength, shape, rate)
        return NormalGammaStatistics(
            -rate - 0.5 * strength * location**2, shape - 0.5, strength * location, -0.5 * strength
        )

    def conventional(self, natural: NormalGammaStatistics) -> dict[str, Array]:
        """Location, strength, shape and rate."""
        strength = -2 * natural.weighted_square
        location = natural.weighted_mean / strength
        rate = -natural.precision - 0.5 * strength * location**2
        return {"location": location, "strength": strength, "shape": natural.log_precision + 0.5, "rate": rate}

    def log_normaliser(self, natural: NormalGammaStatistics) -> Array:
        """A = log Gamma(shape) - shape log rate - log(strength) / 2."""
        params = self.conventional(natural)
        return formulas.gamma_log_normaliser(params["shape"], params["rate"]) - 0.5 * jnp.log(params["strength"])

    def valid(self, natural: NormalGammaStatistics) -> Array:
        """Whether strength, shape and rate are positive."""
        params = self.conventional(natural)
        return (params["strength"] > 0) & (params["shape"] > 0) & (params["rate"] > 0)

    def log_base(self, natural: NormalGammaStatistics) -> float:
        """Log h = -log(2 pi) / 2."""
        return -0.5 * LOG_2PI

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Location 0, strength 1; shape and rate 2: mean precision 1, with a mode."""
        one = jnp.ones(plate, dtype)
        return self.natural(0 * one, one, 2 * one, 2 * one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the joint mode of mean and precision: location, (shape - 1/2) / rate; for shape > 1/2."""
        params = self.conventional(natural)
        precision, mean = natural.log_precision / params["rate"], params["location"]
        return NormalGammaStatistics(precision, jnp.log(precision), precision * mean, precision * mean**2)

    def draw(self, key: Array, natural: NormalGammaStatistics) -> NormalGammaStatistics:
        """Statistics of a draw of (mean, precision)."""
        params = self.conventional(natural)
        gamma_key, key = jax.random.split(key)
        noise = jax.random.normal(key, natural.precision.shape, natural.precision.dtype) / jnp.sqrt(params["strength"])
        log = formulas.gamma_draw(gamma_key, params["shape"], params["rate"])
        root = jnp.exp(0.5 * log)
        standardised = root * params["location"] + noise  # sqrt(precision) * mean
        return NormalGammaStatistics(jnp.exp(log), log, root * standardised, standardised**2)
