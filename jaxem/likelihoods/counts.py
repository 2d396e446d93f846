"""Likelihoods of binary data, counts and categories."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_integer
from jaxem.core.checks import check_matrix, require, require_counts
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.families.counts import is_count, sample_binomial, sample_poisson
from jaxem.families.mean import independent
from jaxem.likelihoods._logs import log_binomial_logits, log_poisson_log_rate
from jaxem.likelihoods.columns import Columns, moments, standard
from jaxem.likelihoods.likelihood import Likelihood

# Up to here log binomial coefficients are looked up: three log-gammas would take longer than a layer of a network.
TABLE = 1024


class _Counts(Likelihood):
    """Base of the four: natural parameters are the outputs, or an affine function of them once standardised."""

    def constraints(self) -> PyTree:
        """Coordinates are fixed."""
        return constraints.Fixed()

    def _natural(self, params: PyTree, outputs: Array) -> Array:
        """Natural parameters: log-rates, log-odds or logits."""
        return params.values(outputs) if isinstance(params, Columns) else outputs


def _inside(share: Array, total: Array) -> Array:
    """A share of `total` observations, kept half of one away from 0 and 1, where its logarithm would be infinite."""
    least = 0.5 / (1 + total)
    return jnp.clip(share, least, 1 - least)


def _log_odds(mean: Array, spread: Array, num_trials: int, total: Array) -> Columns:
    """The log-odds of each column's mean count, by units that move the count by about a standard deviation."""
    prob = _inside(mean / num_trials, num_trials * total)
    variance = num_trials * prob * (1 - prob)
    scale = jnp.minimum(1, jnp.maximum(spread, jnp.sqrt(variance)) / variance)
    return Columns(jnp.log(prob) - jnp.log1p(-prob), scale)


@dataclass
class Bernoulli(_Counts):
    """Binary columns: x_nd | z ~ Bernoulli(sigmoid(output_nd)).

        log p(x | z) = sum_d { x_d output_d - log(1 + exp(output_d)) }

    Values strictly between 0 and 1 (grey levels) are taken as probabilities of a binary draw: the value is then the
    expected log-probability of that draw, whose ELBO is a bound for randomly binarised data, and not a log-density of
    the grey level; use `Binomial` or `Gaussian` for those.

    Examples:
      >>> Bernoulli().log_prob((), jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])).round(4).tolist()
      [-1.3863]
    """

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) with values from 0 to 1."""
        check_matrix(x)
        require(x, lambda v, xp: (v >= 0) & (v <= 1), "values from 0 to 1 for a Bernoulli likelihood")

    def standardise(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Log-odds of the columns' means; a unit is a unit of log-odds."""
        mean, spread = moments(x, weights)
        return _log_odds(mean, jnp.ones_like(spread), 1, jnp.sum(weights))

    def inputs(self, x: Array, weights: Array, common: bool = False) -> tuple[()]:
        """(): 0 and 1 are as good a scale as any."""
        return ()

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        logits = self._natural(params, outputs)
        out = x * logits - jax.nn.softplus(logits)
        return jnp.sum(jnp.where((x >= 0) & (x <= 1), out, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) probabilities of 1."""
        return jax.nn.sigmoid(self._natural(params, outputs))

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) of 0 and 1, in the dtype of the outputs."""
        return jax.random.bernoulli(key, self.mean(params, outputs)).astype(outputs.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Bernoulli", logits=self._natural(params, outputs))


@functools.cache
def _coefficients(n: int) -> np.ndarray:
    """(n + 1,) log binomial coefficients."""
    return np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])


def _log_coefficient(x: Array, n: int) -> Array:
    """Log (n choose x) for n up to `TABLE`, elementwise."""
    return jnp.asarray(_coefficients(n), x.dtype).at[x.astype(jnp.int32)].get(mode="clip")


@dataclass
class Binomial(_Counts):
    """Counts out of n trials, such as n + 1 grey levels: x_nd | z ~ Binomial(n, sigmoid(output_nd)).

        log p(x | z) = sum_d { log (n choose x_d) + x_d output_d - n log(1 + exp(output_d)) }

    With the coefficient, so that values compare with those of any other model of counts.

    Attributes:
      num_trials: n >= 1, the same for every column.

    Examples:
      >>> Binomial(2).log_prob((), jnp.zeros((1, 1)), jnp.array([[1.0]])).round(4).tolist()
      [-0.6931]
    """

    num_trials: int = static()

    def validate(self, x: Any) -> None:
        """Raises unless n is an integer >= 1 and x is (N, D) with counts from 0 to n."""
        check_integer("num_trials", self.num_trials, 1)
        check_matrix(x)
        require_counts(x, self.num_trials)

    def standardise(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Log-odds of the columns' mean counts."""
        return _log_odds(*moments(x, weights), self.num_trials, jnp.sum(weights))

    def inputs(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Mean and deviation of every column, but no less than half a count."""
        return standard(x, weights, common, 0.5)

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        n, logits = self.num_trials, self._natural(params, outputs)
        if n <= TABLE:
            out = _log_coefficient(x, n) + (x * logits - n * jax.nn.softplus(logits))
        else:
            out = log_binomial_logits(x, n, logits)
        return jnp.sum(jnp.where(is_count(x) & (x <= float(n)), out, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) expected counts."""
        return self.num_trials * jax.nn.sigmoid(self._natural(params, outputs))

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) counts, in the dtype of the outputs."""
        return sample_binomial(key, self.num_trials, jax.nn.sigmoid(self._natural(params, outputs)))

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Binomial", total_count=float(self.num_trials), logits=self._natural(params, outputs))


@dataclass
class Poisson(_Counts):
    """Counts: x_nd | z ~ Poisson(exp(output_nd)).

        log p(x | z) = sum_d { x_d output_d - exp(output_d) - log x_d! }

    Evaluated as log Poisson(x | x) + x {g - (exp(g) - 1)}, g = output - log x with log x in two parts, so that large
    counts keep their digits: in float32 to 1e-3 nats up to 1e12.

    Examples:
      >>> Poisson().log_prob((), jnp.zeros((1, 1)), jnp.array([[2.0]])).round(4).tolist()
      [-1.6931]
    """

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) with counts 0, 1, 2, ..."""
        check_matrix(x)
        require_counts(x)

    def standardise(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Logarithms of the columns' means, by units that move the rate by about a standard deviation."""
        mean, spread = moments(x, weights)
        mean = jnp.maximum(mean, 0.5 / (1 + jnp.sum(weights)))
        return Columns(jnp.log(mean), jnp.minimum(1, jnp.maximum(spread, jnp.sqrt(mean)) / mean))

    def features(self, x: Array) -> Array:
        """Square roots, whose noise is the same at any rate."""
        return jnp.sqrt(x)

    def inputs(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Mean and deviation of the square roots, the deviation no less than a Poisson count's own of 1/2."""
        return standard(self.features(x), weights, common, 0.5)

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        log_prob = log_poisson_log_rate(x, self._natural(params, outputs))
        return jnp.sum(jnp.where(is_count(x), log_prob, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) rates."""
        return jnp.exp(self._natural(params, outputs))

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) counts, in the dtype of the outputs."""
        return sample_poisson(key, self.mean(params, outputs))

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Poisson", log_rate=self._natural(params, outputs))


@dataclass
class Categorical(_Counts):
    """Codes 0 to L - 1 in each column: x_nd | z ~ Categorical(softmax(outputs_nd1 .. outputs_ndL)).

    The decoder has D L outputs, the L of a column side by side.

    Attributes:
      levels: L >= 2, the same for every column.

    Examples:
      >>> Categorical(4).log_prob((), jnp.zeros((1, 4)), jnp.array([[3.0]])).round(4).tolist()
      [-1.3863]
    """

    levels: int = static()

    def num_outputs(self, num_columns: int) -> int | None:
        """D L."""
        return num_columns * self.levels

    def validate(self, x: Any) -> None:
        """Raises unless L is an integer >= 2 and x is (N, D) with codes below it."""
        check_integer("levels", self.levels, 2)
        check_matrix(x)
        require_counts(x, self.levels - 1, f"codes 0, ..., {self.levels - 1} of {self.levels} levels")

    def standardise(self, x: Array, weights: Array, common: bool = False) -> Columns:
        """Logarithms of the levels' shares in every column; a unit is a unit of a logit."""
        share, total = weights / jnp.sum(weights), jnp.sum(weights)
        level = lambda code: jnp.sum(jnp.where(x == code, share[:, None], 0), 0)
        found = jax.lax.map(level, jnp.arange(self.levels, dtype=x.dtype))  # no (N, D, L) array
        # Levels that were not seen have half an observation among them.
        centre = jnp.log(jnp.maximum(found.T, 0.5 / ((1 + total) * self.levels))).reshape(-1)
        return Columns(centre, jnp.ones_like(centre))

    def inputs(self, x: Array, weights: Array, common: bool = False) -> tuple[()]:
        """(): codes are names, which an encoder may look up."""
        return ()

    def _logits(self, params: PyTree, outputs: Array) -> Array:
        logits = self._natural(params, outputs)
        return jax.nn.log_softmax(logits.reshape(logits.shape[0], -1, self.levels))

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        code = is_count(x) & (x < self.levels)
        index = jnp.where(code, x, 0).astype(jnp.int32)[:, :, None]
        picked = jnp.take_along_axis(self._logits(params, outputs), index, 2, mode="clip")[:, :, 0]
        return jnp.sum(jnp.where(code, picked, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D, L) probabilities of the levels."""
        return jnp.exp(self._logits(params, outputs))

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) codes, in the dtype of the outputs."""
        return jax.random.categorical(key, self._logits(params, outputs)).astype(outputs.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Categorical", logits=self._logits(params, outputs))
