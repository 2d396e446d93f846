"""The shortest route to a model: the log-joint of one observation and one state."""

from abc import abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import check_integer
from jaxem.core.tree import BLOCK_ROWS, PyTree
from jaxem.model import DiscreteLatent


class Enumerated(DiscreteLatent):
    """A latent variable with `num_states` states, given by log p(x, z | theta) for one datum and one state.

        num_states                        a class attribute, or a static field of the dataclass
        init(key, data, weights)          -> params
        constraints()                     -> a `jaxem.constraints` object at each leaf of the params
        log_joint_one(params, x, z)       -> scalar, nats

    x is one row of the data (of each leaf, where data is a pytree), z an int32 scalar from 0 to num_states - 1: index
    params by it, as in `params["rate"][z]`, or choose by `jnp.where(z == 0, ...)`; -inf marks an impossible state. The
    library vectorises it to (N, K). The E-step enumerates the states; the M-step is by gradients, `fit` takes
    `GeneralizedEM()` by default, and `EM()`, which needs `statistics` and `m_step`, is refused. Write a
    `DiscreteLatent` for a closed M-step; its steps are several times cheaper.

    `log_joint_one` must be differentiable in params where the state is possible; mind `jnp.where` around a function
    that is infinite in the branch not taken (log 0), whose derivative is NaN.

    Examples:
      Two Poisson rates:

      >>> import jaxem
      >>> from jaxem import constraints
      >>> @jaxem.dataclass
      ... class TwoPoissons(Enumerated):
      ...     num_states = 2
      ...     def init(self, key, data, weights):
      ...         factor = jax.random.uniform(key, 2, data.dtype, minval=0.5, maxval=2)
      ...         return {"mixing": jnp.full(2, 0.5, data.dtype), "rate": data.mean() * factor}
      ...     def constraints(self):
      ...         return {"mixing": constraints.Simplex(), "rate": constraints.Positive()}
      ...     def log_joint_one(self, params, x, z):
      ...         log_prob = jax.scipy.stats.poisson.logpmf(x, params["rate"][z])
      ...         return jnp.log(params["mixing"][z]) + log_prob
      >>> data = jnp.array([0.0, 1, 0, 2, 1, 9, 11, 8, 10])
      >>> fit = jaxem.fit(TwoPoissons(), data, key=jax.random.key(0), num_restarts=4)
      >>> [round(rate, 1) for rate in sorted(fit.params["rate"].tolist())]
      [0.8, 9.5]
    """

    num_states: ClassVar[int]  # type: ignore[misc]
    block_rows: ClassVar[int | None] = BLOCK_ROWS

    climbed_by: ClassVar[str] = "gradient"  # an E-step only scores, and there is no m_step

    @abstractmethod
    def log_joint_one(self, params: PyTree, x: PyTree, z: Array) -> Array:
        """Scalar log p(x, z | theta) of one observation and one state, nats."""

    @abstractmethod
    def constraints(self) -> PyTree:
        """A pytree like the params with a `jaxem.constraints` object at each leaf."""

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks that the number of states is stated."""
        check_integer(f"{type(self).__name__}.num_states", getattr(self, "num_states", None), 1)

    def log_joint(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) log p(x_n, z_n = k | theta), nats: `log_joint_one` over rows and states."""
        states = jnp.arange(self.num_states, dtype=jnp.int32)

        def row(x: PyTree) -> Array:
            return jax.vmap(lambda z: self.log_joint_one(params, x, z))(states)

        found = jax.vmap(row)(data)
        name = f"{type(self).__name__}.log_joint_one"
        if found is None:
            raise TypeError(f"{name}: expected a scalar; found None; does it end with a return?")
        if found.ndim != 2:
            raise ValueError(f"{name}: expected a scalar for one row and one state; found shape {found.shape[2:]}")
        return found

    def statistics(self, params: PyTree, data: PyTree, resp: Array) -> PyTree:
        """Raises TypeError: there are none."""
        raise TypeError(f"{type(self).__name__} has no statistics, only log_joint_one: fit it with GeneralizedEM()")

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Raises TypeError: there is none."""
        raise TypeError(f"{type(self).__name__} has no m_step, only log_joint_one: fit it with GeneralizedEM()")
