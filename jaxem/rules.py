"""E-step rules: which q a matrix of log-joints gives."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import check_key, check_number, tabulated
from jaxem.core.keys import DRAWS, own_or_fits
from jaxem.core.pytree import dataclass
from jaxem.core.reverse_kl import reverse_kl
from jaxem.elbo import soften


class Rule(ABC):
    """An E-step rule: which q a matrix of log-joints gives. A small pytree; subclass it to make your own.

    The defaults describe a rule that is the same at every step and under which the reported ELBO never falls.
    """

    @abstractmethod
    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp): a lower bound of log p(x_n), and q, normalised along `axis`, the axis of the states."""

    def along(self, log_joint: Array, axis: int) -> tuple[Array, Array]:
        """(free energy, resp): what a recursion over a structure applies at each of its steps.

        The maximum over q of what the rule's q maximises, as E_q[log p] + T H(q), which a recursion adds up; the rule
        itself where that is its value.
        """
        return self(log_joint, axis)

    def temperature_of(self) -> Any:
        """T, where `along` is T log sum exp(l / T) and its derivative, which may be computed otherwise; or None."""
        return None

    def disturb(self, log_joint: Array) -> Array:
        """The log-joint as the rule takes it, with its noise if it has some."""
        return log_joint

    def scorer(self) -> "Rule":
        """The rule whose free energy is the value reported; itself unless its own is no lower bound of log p(x)."""
        return self

    def prepare(self, key: Array | None, num_steps: int) -> "Rule":
        """The rule ready for one fit: its settings checked, callables of the step as arrays over steps 0..num_steps.

        Called on the host with the key of the fit, which a rule that draws takes unless it has one of its own; None
        outside a fit.
        """
        return self

    def fold(self, number: Any) -> "Rule":
        """The rule with draws of its own for a restart or a block of rows; itself where it does not draw."""
        return self

    def at(self, step: Array) -> "Rule":
        """The rule at one step."""
        return self

    def settled(self, step: Array) -> Array:
        """Whether the rule no longer changes after `step`; no fit stops before that."""
        return jnp.asarray(True)

    def monotone(self, step: Array) -> Array:
        """Whether the reported ELBO cannot fall from `step` on."""
        return jnp.asarray(True)


@dataclass
class Exact(Rule):
    """E-step rule: q is the posterior, the value is log p(x). The E-step of EM; monotone."""

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and the posterior."""
        value, resp, _ = soften(log_joint, jnp.ones((), log_joint.dtype), axis)
        return value, resp

    def temperature_of(self) -> float:
        """1."""
        return 1.0


def key_of(rule: Any) -> Array:
    """The key of a rule that draws; TypeError where it has none."""
    if rule.key is None:
        name = type(rule).__name__
        raise TypeError(f"rule: {name} draws, and outside a fit needs a random key: {name}(jax.random.key(0))")
    return rule.key


@dataclass
class Tempered(Rule):
    """E-step rule: q proportional to p(z | x)^(1 / T), the maximiser of E_q[log p(x, z)] + T H(q).

    T > 1 softens, T < 1 hardens; an array over steps (or a callable of the step, such as an optax schedule, which
    `fit` tabulates) anneals, its last entry being kept. The value reported is log p(x), the ELBO at T = 1, because the
    tempered value is no lower bound for T > 1: so it may fall while T changes, and no fit stops before T has settled.

    The entropy-weighted E-step min KL(q || p) + lambda H(q) with lambda < 1 is `Tempered(1 - lambda)`. At lambda = 1
    the entropies cancel and -sum_k q_k log p_k is left, linear in q: its minimum over the simplex is a vertex, the most
    probable state, so the E-step is `Hard()`. For lambda > 1 the objective is concave and the vertex stays.

    At a high T all components become equal, which is a fixed point at every T: without a perturbation, rounding alone
    takes a run away from it as T falls. With a `key`, log q is perturbed by normal noise while T > 1, after which the
    components separate by themselves once T is below the largest at which separate ones are better. Draws depend on
    key, restart, step and block of rows, as for `Sampled`.

    Attributes:
      temperature: T >= 0, a scalar, an array (num_steps,), or a callable step -> T.
      key: random key of the perturbation; None for none.
      noise: its standard deviation, nats; without a key it has no effect.

    Examples:
      >>> value, resp = Tempered(2.0)(jnp.log(jnp.array([[0.1, 0.9]])))
      >>> resp.round(2).tolist()
      [[0.25, 0.75]]

    References:
      Ueda and Nakano (1998), Deterministic annealing EM algorithm, Neural Networks 11.
    """

    temperature: float | Array | np.ndarray | Callable[[int], Any] = 1.0
    key: Array | None = None
    noise: float | Array = 0.1

    def prepare(self, key: Array | None, num_steps: int) -> "Tempered":
        """The rule with a callable temperature replaced by its values at steps 0..num_steps, its settings checked.

        Raises:
          TypeError, ValueError: temperatures or noise that are no finite numbers >= 0, or no random key.
        """
        temperature: Any = self.temperature
        if callable(temperature):
            temperature = tabulated("temperature", temperature, num_steps + 1)
        elif isinstance(temperature, (list, tuple)):
            temperature = np.asarray(temperature)
        what, each = "a number, an array over steps or a callable of the step", "finite numbers >= 0"
        check_number("temperature", temperature, 0, dims=(0, 1), what=what, each=each)
        check_number("noise", self.noise, 0)
        if self.key is not None:
            check_key("key", self.key)
        return dataclasses.replace(self, temperature=temperature)

    def fold(self, number: Any) -> "Tempered":
        """The rule with a perturbation of its own, if any."""
        return self if self.key is None else dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def at(self, step: Array) -> "Tempered":
        """The rule with the temperature of a step, and a perturbation of its own."""
        table = jnp.asarray(self.temperature)
        temperature = self.temperature if table.ndim == 0 else table.at[step].get(mode="clip")
        return dataclasses.replace(self.fold(step), temperature=temperature)

    def settled(self, step: Array) -> Array:
        """Whether T keeps its last value after `step`, and is not perturbed at it."""
        table = jnp.asarray(self.temperature)
        if table.ndim == 0:
            return jnp.asarray(True) if self.key is None else table <= 1
        changes = jnp.concatenate([jnp.zeros(1, bool), table[1:] != table[:-1]])
        constant = step >= jnp.max(jnp.where(changes, jnp.arange(table.shape[0], dtype=jnp.int32), 0))
        return constant if self.key is None else constant & (table[-1] <= 1)

    def monotone(self, step: Array) -> Array:
        """True once T has settled at 1."""
        table = jnp.asarray(self.temperature)
        last = table if table.ndim == 0 else table[-1]
        return self.settled(step) & (last == 1)

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and the tempered posterior."""
        _, resp = self.along(self.disturb(log_joint), axis)
        return soften(log_joint, jnp.ones((), log_joint.dtype), axis)[0], resp

    def along(self, log_joint: Array, axis: int) -> tuple[Array, Array]:
        """(free energy, resp) at the temperature, without noise."""
        value, resp, _ = soften(log_joint, jnp.asarray(self.temperature, log_joint.dtype), axis)
        return value, resp

    def disturb(self, log_joint: Array) -> Array:
        """The log-joint with normal noise of T times `noise` while T > 1; as it is without a key."""
        if self.key is None:
            return log_joint
        temperature = jnp.asarray(self.temperature, log_joint.dtype)
        draw = jax.random.normal(self.key, log_joint.shape, log_joint.dtype)
        size = jnp.where(temperature > 1, temperature * jnp.asarray(self.noise, log_joint.dtype), 0)
        return log_joint + size * draw

    def temperature_of(self) -> Any:
        """T."""
        return self.temperature

    def scorer(self) -> Rule:
        """`Exact()`: the tempered free energy is no lower bound for T > 1."""
        return Exact()


@dataclass
class Hard(Rule):
    """E-step rule: q is one-hot at the most probable state, ties to the lowest index.

    The value is max_k log p(x, z = k), the ELBO of that q (its entropy is 0): classification EM, monotone in the
    classification likelihood, and K-means for equal spherical components. It is also the entropy-weighted E-step
    min KL(q || p) + lambda H(q) at lambda = 1 (and above), which has a solution at a vertex; see `Tempered`.

    References:
      Celeux and Govaert (1992), A classification EM algorithm for clustering.
    """

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: the largest log-joint and a one-hot of its place."""
        top = jnp.max(log_joint, axis)
        index = jnp.argmax(log_joint, axis)
        resp = jax.nn.one_hot(index, log_joint.shape[axis], dtype=log_joint.dtype, axis=axis)
        return top, resp


@dataclass
class ReverseKL(Rule):
    """E-step rule: q minimises KL(p || q) + lam H(q), p being the posterior; lam = 0 is the posterior itself.

    The divergence is the reverse of the one that an E-step minimises, so no ELBO is climbed: the value reported is
    log p(x), it may fall, and a fit ends where M-steps from these q no longer change it. A minimum satisfies

        p_k = q_k (nu - lam log q_k),   nu = 1 - lam H(q),

    which is solved numerically to rounding. q is sharper than p, but a small p_k is lowered by no more than a factor,
    q_k >= p_k / (1 - lam log q_k), where `Tempered(1 - lam)` takes a power of it. Near ties of p the minimum jumps as
    lam grows, from near p to one state, and of equal states it is the one of lowest index. Costly: measured on
    CPU, 430 and 610 times the time of `Exact` (100 000 x 10 and 10 000 x 5 entries, float64).

    Attributes:
      lam: 0 <= lam <= 1; checked by `fit`.

    Examples:
      >>> value, resp = ReverseKL(0.5)(jnp.log(jnp.array([[0.1, 0.9]])))
      >>> print(resp.round(3))
      [[0.039 0.961]]
    """

    lam: float | Array = 0.5

    def prepare(self, key: Array | None, num_steps: int) -> "ReverseKL":
        """The rule itself, once lam is known to lie in [0, 1].

        Raises:
          TypeError, ValueError: it is no number, or does not.
        """
        check_number("lam", self.lam, 0, 1)
        return self

    def monotone(self, step: Array) -> Array:
        """True for lam = 0 alone."""
        return jnp.asarray(self.lam) == 0

    def along(self, log_joint: Array, axis: int) -> tuple[Array, Array]:
        """Raises TypeError: KL(p || q) of a whole path is no sum over its steps."""
        raise TypeError(
            "rule: ReverseKL takes rows one by one, and a path is more than its steps; a sequence's posterior is "
            "sharpened by Tempered(1 - lam)"
        )

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and the minimiser."""
        value, posterior, _ = soften(log_joint, jnp.ones((), log_joint.dtype), axis)
        resp = reverse_kl(jnp.moveaxis(posterior, axis, -1), jnp.asarray(self.lam, log_joint.dtype))
        return value, jnp.moveaxis(resp, -1, axis)


@dataclass
class Sampled(Rule):
    """E-step rule: q is one-hot at a state drawn from the posterior, one draw a row: stochastic EM.

    The value reported is log p(x), so a fit records the log-likelihood of the chain that the params run through; it
    rises and falls, and no fit stops before max_steps. A row of weight w gets one draw, counted w times.

    Draws depend on the key, the restart, the step and the block of rows, and on nothing else: another block size gives
    others, so that additivity over data holds in distribution only. A component that loses all its rows has proportion
    0 and never gets any back, unless the proportions have a Dirichlet prior.

    Attributes:
      key: random key; None for that of the fit.

    Examples:
      >>> value, resp = Sampled(jax.random.key(0))(jnp.log(jnp.array([[0.25, 0.25], [0.0, 1.0]])))
      >>> resp.sum(1).tolist(), resp[1].tolist()
      ([1.0, 1.0], [0.0, 1.0])

    References:
      Celeux and Diebolt (1985), The SEM algorithm, Computational Statistics Quarterly 2.
    """

    key: Array | None = None

    def prepare(self, key: Array | None, num_steps: int) -> "Sampled":
        """The rule with its key, or that of the fit; TypeError where it is none."""
        return Sampled(own_or_fits(self.key, key, DRAWS))

    def fold(self, number: Any) -> "Sampled":
        """The rule with draws of its own."""
        return Sampled(jax.random.fold_in(key_of(self), number))

    def at(self, step: Array) -> "Sampled":
        """The rule with draws of the step's own."""
        return self.fold(step)

    def settled(self, step: Array) -> Array:
        """False: a small change of a chain tells nothing."""
        return jnp.asarray(False)

    def monotone(self, step: Array) -> Array:
        """False."""
        return jnp.asarray(False)

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and a one-hot of the draw."""
        value, _, _ = soften(log_joint, jnp.ones((), log_joint.dtype), axis)
        state = jax.random.categorical(key_of(self), log_joint, axis)
        return value, jax.nn.one_hot(state, log_joint.shape[axis], dtype=log_joint.dtype, axis=axis)
