"""The protocols a model implements, shortest first: what EM, restarts, statuses and wrappers ask of it."""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import shown
from jaxem.core.numerics import weigh
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.seen import Rows
from jaxem.core.tree import PyTree, float_dtype, map_rows, num_rows, ones_for, sum_blocks, sum_rows
from jaxem.elbo import Decomposition, decompose
from jaxem.rules import Exact, Rule


@dataclass
class EStep:
    """What an E-step returns, additive over data: e_step(A ++ B) = e_step(A) + e_step(B).

    Attributes:
      stats: expected sufficient statistics, any pytree summed over observations.
      elbo_data: ELBO.data of the params that the step was taken at, nats.
    """

    stats: PyTree
    elbo_data: Array


@dataclass
class Health:
    """How close params are to the edges where a likelihood misleads; each a scalar.

    Attributes:
      influence: share of a component's spread that a slight regulariser has, the largest over components; about 1 for
        a component collapsed to a spike, 0 where it cannot happen. Above 0.1 a restart is DEGENERATE.
      min_count: expected number of observations of the smallest component (inf where there are no components).
      relocated: clusters that were empty and moved, summed over steps.
      least_elbo: ELBO.data that the bound model reaches with its latents switched off, nats, -inf where nothing is
        known; a restart that ends below it is UNDERFIT, whether it converged or ran out of steps.
    """

    influence: Array
    min_count: Array
    relocated: Array
    least_elbo: Array | float = -math.inf

    @staticmethod
    def unknown(dtype: Any) -> "Health":
        """The health of a model with nothing to report."""
        return Health(jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32))


@dataclass
class ELBOModel(ABC):
    """The least a model can be: params and an ELBO. Enough for gradient ascent.

    A model is a frozen `jaxem.dataclass`: its floats and arrays are leaves, its ints and strings `jaxem.static`.

    Attributes:
      rows: what the rows of the fit looked like (their shapes and the names of their columns), which later ones are
        held against; set at the end of `fit`.
    """

    # The class that params have, where it is known: other arguments in their place are then named.
    params_type: ClassVar[type | None] = None
    # What `fit` climbs it by unless told: "m_step", "coordinates" (an m_step for each part in turn) or "gradient".
    climbed_by: ClassVar[str] = "gradient"
    # Whether the objective scales with the data, as a distortion does: tolerances are then relative; else it is nats.
    scales: ClassVar[bool] = False
    # States of its latent variable, where that is discrete and they are known before there are params.
    # (Without an annotation: as a field, which it is in `HMM`, it then has the place that its own class gives it.)
    num_states = None  # type: Any
    # Names of the columns that the model takes as a dict, for which a frame is taken apart.
    row_keys: ClassVar[tuple[str, ...] | None] = None

    rows: Rows | None = static(default=None, kw_only=True, repr=False)

    @abstractmethod
    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        """Random starting params (a pytree of arrays), not iterated to convergence."""

    @abstractmethod
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """ELBO.data: sum of weights * ELBO of each observation, nats."""

    def elbo_params(self, params: PyTree) -> Array:
        """ELBO.params, nats: a log prior, a penalty or -KL; 0 unless overridden."""
        return jnp.zeros((), float_dtype(params))

    def training_elbo(self, params: PyTree, data: PyTree, weights: Array, key: Array, step: Array) -> Array:
        """ELBO.data as gradients climb it in pass `step`; `elbo_data` unless overridden (a KL that is warmed up).

        Scores, traces and selection use `elbo_data`, whatever this is.
        """
        return self.elbo_data(params, data, weights, key)

    def adapt(self, params: PyTree, value: Array) -> PyTree:
        """Params after an update by gradient on a batch whose `training_elbo` per unit weight was `value`.

        For what follows the training without a gradient, as a running baseline; the params themselves by default.
        """
        return params

    def bind(self, data: PyTree, weights: Array) -> "ELBOModel":
        """The model with what it takes from the data (scales, reserves), once per fit; the model itself by default."""
        return self

    def arrange(self, data: PyTree) -> PyTree:
        """The data in the layout that a bound model's E-step reads fastest, once per fit; as they are by default.

        Rows stay rows: every leaf keeps the leading axis. An E-step takes data in either layout.
        """
        return data

    def opened(self, data: Any, name: str) -> Any:
        """What a user holds as the pytree that the model takes, on the host: a list of sequences, padded.

        As it is by default; arrays are then read, checked and cast by the door itself.
        """
        return data

    def over(self, layout: Any) -> "ELBOModel":
        """The model for rows that lie over a mesh; `jaxem.sharding` says how."""
        return self

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Raises ValueError or TypeError for what does not suit the model; nothing by default.

        Called on the host for data that are read and finite. Without params, by `fit`: for settings that are wrong or
        do not suit the data, and rows that the model cannot have made. With params, by every method that takes rows:
        for such rows, and rows that are not as wide as the params. Values are looked at only where they are no tracers.
        """

    def __dir__(self) -> list[str]:
        # What a person calls; what the engine calls is out of the way.
        hooks = _hooks(type(self))
        return [name for name in super().__dir__() if name not in hooks]

    def inside(self, params: PyTree) -> tuple["ELBOModel", PyTree]:
        """The model and the params that a fit's questions are for; itself unless a wrapper has others inside."""
        return self, params

    @property
    def least_rows(self) -> tuple[str, int]:
        """How many rows a random start needs, after the setting that says so: ("num_components", 3); 1 by default."""
        return "", 1

    def constraints(self) -> PyTree:
        """A pytree like the params with a `jaxem.constraints` object at each leaf; needed for gradients and checks.

        A constraint in place of a subtree holds for all its leaves: `Real()` for a whole network.
        """
        raise TypeError(
            f"model: {type(self).__name__} declares no constraints(), which gradients and check_model need; write it: "
            "a jaxem.constraints object at each leaf of the params"
        )

    def canonical(self, params: PyTree, reorder: bool | Array = True) -> PyTree:
        """The same parameters as they are shown, and as the bound model can use given ones; as they are by default.

        What follows from other parts is made to, and interchangeable parts come in a fixed order if `reorder` is True,
        or in the order of its indices (K,).
        """
        return params

    def health(self, params: PyTree) -> Health:
        """How near params are to a degenerate optimum; nothing to report by default."""
        return Health.unknown(float_dtype(params))

    def coincident(self, params: PyTree) -> Array:
        """Whether two parts of the params are the same, which is a saddle of the likelihood; False by default."""
        return jnp.asarray(False)

    def notes(self, params: PyTree | None = None) -> list[str]:
        """Sentences about the bound model, on the host; none by default.

        Without params: what `bind` did with the data (constant columns). With those of a fit that ended DEGENERATE: why
        it did, each reason with a remedy.
        """
        return []


# Methods of the protocols that are for people; all others are for the engine.
_ASKED = frozenset({"posterior", "predict", "log_prob", "decompose", "local", "means", "bind"})


@functools.cache
def _hooks(cls: type) -> frozenset[str]:
    """Public names that the abstract classes above `cls` define for the engine."""
    bases = [base for base in cls.__mro__ if inspect.isabstract(base) or base is ELBOModel]
    asked = _ASKED.union(*(vars(base).get("_asked", ()) for base in bases))  # of classes between these and a model
    return frozenset(name for base in bases for name in vars(base) if not name.startswith("_")) - asked


@functools.cache
def _questions(cls: type) -> tuple[str, ...]:
    hooks = _hooks(cls)
    methods = [(n, getattr(cls, n)) for n in dir(cls) if not n.startswith("_") and n not in hooks]
    return tuple(
        n for n, m in methods if inspect.isfunction(m) and list(inspect.signature(m).parameters)[1:2] == ["params"]
    )


def verbs(model: ELBOModel) -> tuple[str, ...]:
    """Names of what can be asked of a model at its params: methods whose first argument is params, no hooks."""
    inner = getattr(model, "model", None)  # what a wrapper answers by the model inside
    return tuple(sorted({*_questions(type(model)), *(verbs(inner) if isinstance(inner, ELBOModel) else ())}))


@dataclass
class At:
    """A model at params, made by `model.at(params)`: what is derived from the params (an inverse) is derived once.

    An algorithm's step reads

        here = model.at(params)
        found = here.e_step(data, weights, rule)
        better = here.m_step(found.stats)

    This one asks the model's own methods; a model that derives something has a subclass with that inside.

    Attributes:
      model: the model.
      params: its params.
    """

    model: Any
    params: PyTree

    def explain(self, data: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_joint (N, K), and the function resp -> statistics; overridden to share work between the two."""
        model = self.model
        collect = lambda resp: model.statistics(self.params, data, resp) if model.climbed_by == "m_step" else ()
        return model.log_joint(self.params, data), collect

    def log_joint(self, data: PyTree) -> Array:
        """(N, K) log p(x_n, z_n = k | theta), nats."""
        return self.explain(data)[0]

    def statistics(self, data: PyTree, resp: Array) -> PyTree:
        """Sufficient statistics weighted by resp (N, K), summed over n."""
        return self.explain(data)[1](resp)

    def infer(self, log_joint: PyTree, rule: Rule) -> tuple[Array, PyTree]:
        """(N,) the value of the rule's E-step, nats, and its responsibilities, of the tree of the log-joint."""
        return rule(log_joint)

    def posterior(self, data: PyTree, rule: Rule) -> Array:
        """(N, K) responsibilities by the rule."""
        return self.shown(self.infer(self.log_joint(data), rule)[1])

    def shown(self, q: PyTree) -> Array:
        """(N, K) what a user is told of q."""
        return q

    def best(self, log_joint: PyTree) -> Array:
        """(N,) the most probable states."""
        return jnp.argmax(log_joint, -1)

    def rule_out(self, log_joint: PyTree, allowed: Array) -> PyTree:
        """The log-joint with -inf for the states that are not allowed, (N, K)."""
        return jnp.where(allowed, log_joint, -jnp.inf)

    def decompose(self, log_joint: PyTree, old: PyTree, rule: Rule) -> Decomposition:
        """(N,) the terms of log p(x) = ELBO + KL, at q of the rule at another log-joint."""
        return decompose(log_joint, rule(old)[1])

    def moved(self, gone: Array, owner: Array, row: PyTree, share: Array, data: PyTree, weights: Array) -> PyTree:
        """Params with the state `gone` put at a row, between it and the state `owner`, in whose shape; see `Swap`.

        By one E-step without that state, and an M-step. Half of what `owner` explains goes to the new place: half of
        that as it is distributed there, half at the row.

        Args:
          gone: index of the state to move.
          owner: index of another, which explains the row best.
          row: rows (1, ...), one.
          share: the weight to put at the row.
          data: all rows.
          weights: (N,).
        """
        model, rule = self.model, self.model.default_rule()
        num = model.num_states or self.log_joint(row).shape[-1]
        # In the coordinates of `owner`, where statistics are relative to params.
        states = jnp.arange(num, dtype=jnp.int32)
        there = model.at(model.canonical(self.params, jnp.where(states == gone, owner, states)))
        away, own = (states == gone)[None], (states == owner)[None]

        def block(x: PyTree, w: Array, number: Any) -> PyTree:
            # The row is one more of the first block: an evaluation of its own would be compiled as another E-step.
            log_joint, collect = there.explain(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, row))
            resp = there.infer(there.rule_out(log_joint, ~away), rule)[1][:-1]
            resp = jnp.where(own, 0.5 * resp, jnp.where(away, 0.25 * resp[:, owner][:, None], resp))
            at_row = jnp.where(away & (jnp.asarray(number) == 0), share, 0).astype(resp.dtype)
            return collect(jnp.concatenate([weigh(w, resp), at_row]))

        return there.m_step(sum_blocks(block, data, weights, model.rows_at_once(data)))

    def beside(self, row: PyTree, data: PyTree) -> Array | None:
        """(n,) the log-joint of a state put at a row (1, ...); None where the row does not say it all."""
        return None

    def exchanged(self, data: PyTree, weights: Array) -> PyTree | None:
        """Params that may leave an optimum of plain steps; None where the model knows none."""
        return None

    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        """Expected statistics and ELBO.data, additive over data."""
        return self.model.e_step(self.params, data, weights, rule)

    def m_step(self, stats: PyTree) -> PyTree:
        """Params that maximise the expected log-joint plus elbo_params, of statistics taken here."""
        return self.model.m_step(self.params, stats)

    def rebase(self, stats: PyTree, new: "At") -> PyTree:
        """Statistics taken here as if taken at `new`."""
        return self.model.rebase(stats, self.params, new.params)

    def elbo_params(self) -> Array:
        """ELBO.params, nats."""
        return self.model.elbo_params(self.params)


@dataclass
class DiscreteAt(At):
    """A `DiscreteLatent` at params: its states are summed over, in blocks of rows."""

    def predict(self, data: PyTree) -> Array:
        """(N,) most probable states."""
        return self.best(self.log_joint(data))

    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        """Responsibilities by the rule, then statistics; O(N K) time."""

        def block(x: PyTree, w: Array, number: Any) -> EStep:
            log_joint, collect = self.explain(x)
            value, resp = self.infer(log_joint, rule.fold(number))
            weighed = jax.tree.map(lambda leaf: weigh(w, leaf), resp)
            return EStep(collect(weighed), jnp.sum(weigh(w, value)))

        return sum_blocks(block, data, weights, self.model.rows_at_once(data))


@dataclass
class _OwnStep(DiscreteAt):
    """A `DiscreteLatent` at params whose class has an e_step of its own."""

    e_step = At.e_step


class LatentModel(ELBOModel):
    """A model whose E-step has a closed form: expected statistics in, params out."""

    climbed_by: ClassVar[str] = "m_step"

    @abstractmethod
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """Expected statistics and ELBO.data at `params`; additive over data, linear in weights."""

    @abstractmethod
    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Params that maximise the expected log-joint plus elbo_params; `params` are those the stats were taken at."""

    def at(self, params: PyTree) -> At:
        """The model at params, with what its steps derive from them."""
        return At(self, params)

    def rebase(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        """Statistics taken at params `old` as if taken at `new`, for averages over steps; the same by default.

        To be overridden where statistics are relative to the params of their E-step.
        """
        return stats

    def default_rule(self) -> Rule:
        """The E-step rule used when an algorithm names none."""
        return Exact()

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """ELBO.data of the model's own E-step, nats."""
        return self.e_step(params, data, weights).elbo_data


class DiscreteLatent(LatentModel):
    """A latent variable with K states: write four methods, and the E-step, posterior and log_prob follow.

        init(key, data, weights)          -> params
        log_joint(params, data)           -> (N, K)   log p(x_n, z_n = k | theta), nats
        statistics(params, data, resp)    -> pytree   sum_n of resp-weighted sufficient statistics; resp (N, K) are the
                                                      responsibilities times the weights
        m_step(params, stats)             -> params

    Examples:
      A mixture of two Poisson distributions:

      >>> import jaxem
      >>> @jaxem.dataclass
      ... class TwoPoissons(jaxem.DiscreteLatent):
      ...     def init(self, key, data, weights):
      ...         factor = jax.random.uniform(key, 2, minval=0.5, maxval=2)
      ...         return {"mixing": jnp.full(2, 0.5), "rate": data.mean() * factor}
      ...     def log_joint(self, params, data):
      ...         log_prob = jax.scipy.stats.poisson.logpmf(data[:, None], params["rate"][None])
      ...         return jnp.log(params["mixing"])[None] + log_prob
      ...     def statistics(self, params, data, resp):
      ...         return resp.sum(0), resp.T @ data
      ...     def m_step(self, params, stats):
      ...         count, total = stats
      ...         return {"mixing": count / count.sum(), "rate": total / count}
      >>> data = jnp.array([0.0, 1, 0, 2, 1, 9, 11, 8, 10])
      >>> fit = jaxem.fit(TwoPoissons(), data, key=jax.random.key(0), num_restarts=4)
      >>> [round(rate, 1) for rate in sorted(fit.params["rate"].tolist())]
      [0.8, 9.5]
    """

    # Rows per block; None: the whole data at once, as `chunked` changes for any model.
    block_rows: ClassVar[int | None] = None

    @abstractmethod
    def log_joint(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) log p(x_n, z_n = k | theta), nats."""

    @abstractmethod
    def statistics(self, params: PyTree, data: PyTree, resp: Array) -> PyTree:
        """Sufficient statistics weighted by resp (N, K) (weights included), summed over n; linear in resp."""

    def at(self, params: PyTree) -> DiscreteAt:
        """The model at params; one that has an e_step of its own is asked for it."""
        own = type(self).e_step is not DiscreteLatent.e_step
        return _OwnStep(self, params) if own else DiscreteAt(self, params)

    def rows_at_once(self, data: PyTree) -> int:
        """Rows of a block; `block_rows`, or all of them."""
        return self.block_rows or max(1, num_rows(data))

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """Responsibilities by the rule, then statistics; O(N K) time, in blocks of rows where the model sets them."""
        here = self.at(params)
        step = partial(DiscreteAt.e_step, here) if isinstance(here, _OwnStep) else here.e_step
        return step(data, ones_for(data) if weights is None else weights, self.default_rule() if rule is None else rule)

    @takes_rows
    def decompose(
        self, params: PyTree, old: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None
    ) -> Decomposition:
        """The quantities of the theory of EM at `params`, for q from an E-step at `old`; weighted sums, nats.

        With the exact rule (the default) q = p(z | x, old); with Q = expected_log_joint, H = expected_log_posterior:

            log p(x | params) - log p(x | old) = [Q(params) - Q(old)] - [H(params) - H(old)],    H(params) <= H(old)

        so whatever raises Q raises the log-likelihood by at least as much.

        Args:
          params: where the log-joint is evaluated.
          old: where q is taken.
          data: observations.
          weights: (N,) or None for ones.
          rule: the E-step rule that gives q; `Exact()` by default.

        Returns:
          `Decomposition` of scalars. Time of two E-steps, in blocks of rows.

        References:
          Dempster, Laird and Rubin (1977), section 3; Neal and Hinton (1998), section 2.
        """
        if self.params_type is not None and not isinstance(old, self.params_type):
            raise TypeError(f"old: expected {self.params_type.__name__}, as in fit.params; found {shown(old)}")
        rule = Exact() if rule is None else rule
        here, there = self.at(params), self.at(old)

        def block(x: PyTree, w: Array) -> Decomposition:
            terms = here.decompose(here.log_joint(x), there.log_joint(x), rule)
            return jax.tree.map(lambda term: jnp.sum(weigh(w, term)), terms)

        return sum_rows(block, data, ones_for(data) if weights is None else weights, self.rows_at_once(data))

    @takes_rows
    def posterior(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) responsibilities p(z_n = k | x_n), whatever rule the fit used; compiled once per shape.

        Of an objective without a density, those of the model's own rule.
        """
        return _posterior(self, params, data)

    @takes_rows
    def predict(self, params: PyTree, data: PyTree) -> Array:
        """(N,) the most probable state, ties to the lowest index; no (N, K) array where the model works in blocks."""
        return _predict(self, params, data)

    @takes_rows
    def log_prob(self, params: PyTree, data: PyTree) -> Array:
        """(N,) log p(x_n | theta), nats; TypeError for an objective without a density, as that of K-means."""
        if self.scales:
            raise TypeError(
                f"{type(self).__name__} has no density: log_prob, bic, aic and icl do not apply; "
                "see GMM(K, 'spherical')"
            )
        return _log_prob(self, params, data)


@jax.jit
def _posterior(model: DiscreteLatent, params: PyTree, data: PyTree) -> Array:
    here, rule = model.at(params), model.default_rule() if model.scales else Exact()
    return map_rows(lambda x: here.posterior(x, rule), data, model.rows_at_once(data))


@jax.jit
def _predict(model: DiscreteLatent, params: PyTree, data: PyTree) -> Array:
    here = model.at(params)
    return map_rows(here.predict, data, model.rows_at_once(data))


@jax.jit
def _log_prob(model: DiscreteLatent, params: PyTree, data: PyTree) -> Array:
    here = model.at(params)
    return map_rows(lambda x: here.infer(here.log_joint(x), Exact())[0], data, model.rows_at_once(data))
