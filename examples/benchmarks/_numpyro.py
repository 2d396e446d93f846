"""Stochastic variational inference for a Poisson mixture with NumPyro, for `bayesian.py`."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# First rate of Adam in log a, log b, log c, falling to 0 along a cosine; the best of five from
# 0.0003 to 0.03 at 100,000 rows.
LEARNING_RATE = 0.001


def poisson_svi(
    x: np.ndarray,
    prior: tuple[float, np.ndarray, float],
    start: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
    passes: int,
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> tuple[list[float], float]:
    """Runs NumPyro's SVI with the same q: Gamma(a, b) rates (K, D), Dirichlet(c) proportions (K,).

    The labels are summed out, as NumPyro cannot give them a q that is updated; gradients are pathwise through Gamma and
    Dirichlet draws. Batches are those of the NumPy loop.

    Args:
      x: (N, D) counts.
      prior: a0, b0 (D,) and c0.
      start: a (K, D), b (K, D) and c (K,) of q.
      batch_size: B, a divisor of N.
      passes: over the data.
      score: ELBO of q with the labels back in, nats.

    Returns:
      (ELBO before and after each pass, seconds of the passes alone, without compilation and scores).
    """
    import numpyro
    import optax
    from numpyro import distributions as dist
    from numpyro.distributions import constraints
    from numpyro.infer import SVI, Trace_ELBO

    (a0, b0, c0), (a, b, c), num = prior, start, len(x)

    def model(rows: Any) -> None:
        mixing = numpyro.sample("mixing", dist.Dirichlet(jnp.full(len(c), c0)))
        rate = numpyro.sample("rate", dist.Gamma(a0, jnp.broadcast_to(b0, a.shape)).to_event(2))
        mixture = dist.MixtureSameFamily(dist.Categorical(mixing), dist.Poisson(rate).to_event(1))
        with numpyro.plate("rows", num, subsample_size=batch_size):
            numpyro.sample("x", mixture, obs=rows)

    def guide(rows: Any) -> None:
        positive = constraints.positive
        own = [numpyro.param(n, jnp.asarray(v), constraint=positive) for n, v in (("a", a), ("b", b), ("c", c))]
        numpyro.sample("rate", dist.Gamma(own[0], own[1]).to_event(2))
        numpyro.sample("mixing", dist.Dirichlet(own[2]))

    rate = optax.cosine_decay_schedule(LEARNING_RATE, passes * (num // batch_size))
    svi = SVI(model, guide, numpyro.optim.optax_to_numpyro(optax.adam(rate)), Trace_ELBO())
    data, rng = jnp.asarray(x), np.random.default_rng(0)
    state = svi.init(jax.random.key(0), data[:batch_size])

    @jax.jit
    def one_pass(state: Any, data: Any, order: Any) -> Any:
        return jax.lax.scan(lambda state, rows: (svi.update(state, data[rows])[0], None), state, order)[0]

    seconds, trace = 0.0, [score(a, b, c)]
    shape = (num // batch_size, batch_size)
    jax.block_until_ready(one_pass(state, data, np.arange(num).reshape(shape)))  # compiled before the clock starts
    for _ in range(passes):
        began = time.perf_counter()
        state = jax.block_until_ready(one_pass(state, data, rng.permutation(num).reshape(shape)))
        seconds += time.perf_counter() - began
        found = svi.get_params(state)
        trace.append(score(*(np.asarray(found[name]) for name in "abc")))
    return trace, seconds
