"""Likelihoods of binary data, counts and categories."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._pytree import dataclass, static
from jaxem._tree import PyTree
from jaxem.families._checks import check_matrix, require
from jaxem.families._counts import is_count, sample_binomial, sample_poisson
from jaxem.likelihoods._logs import log_binomial_logits, log_poisson_log_rate
from jaxem.likelihoods.likelihood import Likelihood, independent

# Up to here log binomial coefficients are looked up: three log-gammas would take longer than a layer of a network.
TABLE = 1024


@dataclass
class Bernoulli(Likelihood):
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

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        out = x * outputs - jax.nn.softplus(outputs)
        return jnp.sum(jnp.where((x >= 0) & (x <= 1), out, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) probabilities of 1."""
        return jax.nn.sigmoid(outputs)

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) of 0 and 1, in the dtype of the outputs."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(outputs.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Bernoulli", logits=outputs)


@functools.cache
def _coefficients(n: int) -> np.ndarray:
    """(n + 1,) log binomial coefficients."""
    return np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])


def _log_coefficient(x: Array, n: int) -> Array:
    """Log (n choose x) for n up to `TABLE`, elementwise."""
    return jnp.asarray(_coefficients(n), x.dtype).at[x.astype(jnp.int32)].get(mode="clip")


@dataclass
class Binomial(Likelihood):
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
        n = self.num_trials
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise ValueError(f"num_trials: expected an integer >= 1; found {n!r}")
        check_matrix(x)
        expected = f"counts 0, 1, ..., {n} out of num_trials = {n}"
        require(x, lambda v, xp: (v >= 0) & (v <= n) & (v == xp.round(v)), expected)

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        n = self.num_trials
        if n <= TABLE:
            out = _log_coefficient(x, n) + (x * outputs - n * jax.nn.softplus(outputs))
        else:
            out = log_binomial_logits(x, n, outputs)
        return jnp.sum(jnp.where(is_count(x) & (x <= float(n)), out, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) expected counts."""
        return self.num_trials * jax.nn.sigmoid(outputs)

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) counts, in the dtype of the outputs."""
        return sample_binomial(key, self.num_trials, jax.nn.sigmoid(outputs))

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Binomial", total_count=float(self.num_trials), logits=outputs)


@dataclass
class Poisson(Likelihood):
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
        require(x, lambda v, xp: (v >= 0) & (v == xp.round(v)), "counts 0, 1, 2, ... for a Poisson likelihood")

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        return jnp.sum(jnp.where(is_count(x), log_poisson_log_rate(x, outputs), -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) rates."""
        return jnp.exp(outputs)

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) counts, in the dtype of the outputs."""
        return sample_poisson(key, jnp.exp(outputs))

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Poisson", log_rate=outputs)


@dataclass
class Categorical(Likelihood):
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
        n = self.levels
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2:
            raise ValueError(f"levels: expected an integer >= 2; found {n!r}")
        check_matrix(x)
        require(x, lambda v, xp: (v >= 0) & (v < n) & (v == xp.round(v)), f"codes 0, ..., {n - 1} of {n} levels")

    def _logits(self, outputs: Array) -> Array:
        return jax.nn.log_softmax(outputs.reshape(outputs.shape[0], -1, self.levels))

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats; -inf for rows outside the support."""
        code = is_count(x) & (x < self.levels)
        index = jnp.where(code, x, 0).astype(jnp.int32)[:, :, None]
        picked = jnp.take_along_axis(self._logits(outputs), index, 2, mode="clip")[:, :, 0]
        return jnp.sum(jnp.where(code, picked, -jnp.inf), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D, L) probabilities of the levels."""
        return jnp.exp(self._logits(outputs))

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) codes, in the dtype of the outputs."""
        return jax.random.categorical(key, self._logits(outputs)).astype(outputs.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        return independent("Categorical", logits=self._logits(outputs))
