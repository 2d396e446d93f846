"""Exponential families on and over a simplex: the Dirichlet and the categorical."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxem.core import constraints
from jaxem.expfam import formulas
from jaxem.expfam.family import ExponentialFamily, as_floats


class DirichletStatistics(NamedTuple):
    """Statistic log x (..., K)."""

    log: Array


class Dirichlet(ExponentialFamily):
    """Dirichlet distribution with concentration (..., K); natural concentration - 1."""

    Statistics, ranks = DirichletStatistics, (1,)
    domains: ClassVar[dict[str, Any]] = {"concentration": constraints.Positive()}

    def natural(self, concentration: Any) -> DirichletStatistics:
        """Natural parameters from the concentration."""
        (concentration,) = as_floats((1,), concentration)
        return DirichletStatistics(concentration - 1)

    def conventional(self, natural: DirichletStatistics) -> dict[str, Array]:
        """The concentration."""
        return {"concentration": natural.log + 1}

    def log_normaliser(self, natural: DirichletStatistics) -> Array:
        """A = sum log Gamma(concentration) - log Gamma(sum concentration)."""
        return formulas.dirichlet_log_normaliser(natural.log + 1)

    def valid(self, natural: DirichletStatistics) -> Array:
        """Whether all concentrations are positive."""
        return jnp.all(natural.log > -1, -1)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Concentrations 2: with a mode."""
        return DirichletStatistics(jnp.ones((*plate, dim), dtype))

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mode (concentration - 1) / sum, for concentrations > 1."""
        return DirichletStatistics(jnp.log(natural.log / jnp.sum(natural.log, -1, keepdims=True)))

    def draw(self, key: Array, natural: DirichletStatistics) -> DirichletStatistics:
        """Statistics of a draw; finite where small concentrations make proportions underflow."""
        return DirichletStatistics(formulas.dirichlet_draw(key, natural.log + 1))

    def distribution(self, natural: DirichletStatistics) -> Any:
        """A `distrax.Dirichlet`."""
        import distrax

        return distrax.Dirichlet(natural.log + 1)


class CategoricalStatistics(NamedTuple):
    """Statistic: the one-hot state (..., K); natural parameters are logits, defined up to a constant."""

    one_hot: Array


class Categorical(ExponentialFamily):
    """Categorical distribution over K states with probabilities (..., K); logits of -inf are impossible states."""

    Statistics, ranks = CategoricalStatistics, (1,)
    domains: ClassVar[dict[str, Any]] = {"prob": constraints.Simplex()}

    def natural(self, prob: Any) -> CategoricalStatistics:
        """Logits from probabilities."""
        (prob,) = as_floats((1,), prob)
        return CategoricalStatistics(jnp.log(prob))

    def conventional(self, natural: CategoricalStatistics) -> dict[str, Array]:
        """The probabilities."""
        return {"prob": jax.nn.softmax(natural.one_hot, -1)}

    def log_normaliser(self, natural: CategoricalStatistics) -> Array:
        """A = log sum exp(logits)."""
        return logsumexp(natural.one_hot, -1)

    def valid(self, natural: CategoricalStatistics) -> Array:
        """Whether no logit is NaN or +inf and one is finite."""
        logits = natural.one_hot
        return jnp.all(logits < jnp.inf, -1) & jnp.any(jnp.isfinite(logits), -1)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Uniform."""
        return CategoricalStatistics(jnp.zeros((*plate, dim), dtype))

    def at_mode(self, natural: Any) -> Any:
        """One-hot of the most probable state, ties to the lowest index."""
        logits = natural.one_hot
        return CategoricalStatistics(jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=logits.dtype))

    def draw(self, key: Array, natural: CategoricalStatistics) -> CategoricalStatistics:
        """One-hot of a draw."""
        logits = natural.one_hot
        state = jax.random.categorical(key, logits, -1)
        return CategoricalStatistics(jax.nn.one_hot(state, logits.shape[-1], dtype=logits.dtype))

    def distribution(self, natural: CategoricalStatistics) -> Any:
        """A `distrax.Categorical`."""
        import distrax

        return distrax.Categorical(logits=natural.one_hot)
