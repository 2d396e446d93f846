"""Hidden Markov models with a prior on everything, fitted by variational EM."""

import dataclasses
from typing import Any

import jax
from jax import Array

from jaxem.core.arguments import as_key
from jaxem.core.checks import check_array
from jaxem.core.foreign import named_fields
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import check_params, takes_rows
from jaxem.core.sequences import Sequences
from jaxem.core.tree import PyTree, map_rows
from jaxem.families import Family
from jaxem.models.hmm import HMM, HMMParams, Sequential
from jaxem.models.under_prior import UnderPrior
from jaxem.priors import Prior
from jaxem.rules import Exact
from jaxem.structures.chain import ChainMixing
from jaxem.structures.chain_law import ChainLaw
from jaxem.structures.mixing import Dirichlet


@named_fields
@dataclass
class BayesianHMM(Sequential, UnderPrior):
    """Hidden Markov model with priors, fitted by mean-field variational EM: q(paths) q(chain) prod_k q(theta_k).

        initial ~ Dirichlet(initial_concentration),   transition_j ~ Dirichlet(concentration + stickiness [k = j])
        theta_k ~ prior,   z a chain of these,   x_t | z_t = k ~ family(theta_k)

        ELBO.data   = sum_s w_s log sum over paths of exp(E log p(x_s, path))
        ELBO.params = -KL(q(initial) || p) - sum_j KL(q(transition_j) || p) - sum_k KL(q(theta_k) || p(theta_k))

    Both steps are exact maximisations, so ELBO.total <= log p(data) never falls, and all that goes for `HMM` goes for
    this: data, weights, missing steps, allowed transitions, rules, algorithms. The posterior of a path within q is
    exact, by forward-backward with exp(E log p) in place of probabilities. With more states than needed and a small
    concentration the rest may empty themselves, `pruning` says which; where states overlap, better optima with fewer of
    them are rarely found from random starts, so compare ELBO.total over K as well. The K! orders of the states are as
    many optima, of which q covers one.

    `posterior`, `predict`, `filtered` are of q; `log_prob` and `log_predictive` are those of the model at the expected
    probabilities and each state's posterior predictive density, as if observations told nothing more of the parameters.

    Attributes:
      family: Gaussian, Poisson, Exponential, Bernoulli or Categorical.
      num_states: K >= 1.
      prior: a `jaxem.priors.Prior`; None for the family's own with its defaults.
      concentration: > 0, of each transition of a row; None for 1 / K.
      initial_concentration: > 0, of each first state; None for 1 / K.
      stickiness: >= 0, added to the concentration of staying: states that last (Fox et al. 2011).
      allowed: (K, K) which transitions there are; see `HMM`.
      init_method: name of the start; see `Mixture`.
      init_size: most steps that a start looks at.
      total_weight: number of observations, weights included, set by `bind`.
      mean_length: steps of a sequence on average, set by `bind`.

    References:
      MacKay (1997), Ensemble learning for hidden Markov models; Beal (2003), Variational algorithms for approximate
      Bayesian inference, chapter 3; Fox, Sudderth, Jordan and Willsky (2011), A sticky HDP-HMM.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> states = np.repeat([0, 1, 0, 1], 50)
      >>> x = np.random.default_rng(0).poisson(np.where(states, 9.0, 2.0))[:, None]
      >>> model = BayesianHMM(jaxem.families.Poisson(), 4, concentration=0.01)
      >>> fit = jaxem.fit(model, x, key=jax.random.key(0), num_restarts=8)
      >>> len(set(fit.predict(x).tolist()))
      2
    """

    family: Family
    num_states: int = static()
    prior: Prior | None = None
    concentration: float | Array | None = None
    initial_concentration: float | Array | None = None
    stickiness: float | Array = 0.0
    allowed: Any = None
    init_method: str = static(default="kmeans++")
    init_size: int = static(default=10_000)
    total_weight: Array | None = dataclasses.field(default=None, repr=False)
    mean_length: Array | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"BayesianHMM({self.family!r}, {self.num_states})"

    @property
    def law(self) -> ChainLaw:
        """Dirichlet posteriors."""
        length = 1.0 if self.mean_length is None else self.mean_length
        rows = Dirichlet(1 / self.num_states if self.concentration is None else self.concentration)
        first = Dirichlet(1 / self.num_states if self.initial_concentration is None else self.initial_concentration)
        return ChainLaw(first, rows, self.stickiness, self.allowed, length)

    def check_settings(self, data: Sequences) -> None:
        """Checks the chain's settings and the prior."""
        super().check_settings(data)
        for name in ("concentration", "initial_concentration"):
            if getattr(self, name) is not None:
                check_array(name, getattr(self, name), ((),), positive=True)
        self.check_prior(self.structure.rows(data))

    def bind(self, data: Sequences, weights: Array) -> "BayesianHMM":
        """Binds the family and the prior to the observations."""
        rows, counts, length = self.counted(data, weights)
        filled = self.bound_prior(self.family.bind(rows, counts), rows, counts)
        return dataclasses.replace(self, mean_length=length, **filled)

    @takes_rows
    def log_prob(self, params: HMMParams, data: Any) -> Array:
        """(S,) log density at the expected chain and the states' posterior predictive densities, nats."""
        return _log_prob(self, params, data)

    def log_prob_of_rows(self, params: HMMParams, rows: PyTree) -> Array:
        """(n, K) posterior predictive log-density of rows in each state, nats."""
        return self.components.at(params.components).q.log_predictive(rows)

    def plug_in(self, params: HMMParams) -> HMMParams:
        """A point: params of `HMM(family, K)` with the expected probabilities and the plug-in components."""
        check_params(self, params)
        return _plug_in(self, params)

    def draw(self, params: HMMParams, *, key: Array) -> HMMParams:
        """Params of `HMM(family, K)` drawn from the posterior q."""
        check_params(self, params)
        return _draw(self, params, as_key(key))

    def sample(self, params: HMMParams, num_samples: int, *, key: Array, length: int) -> tuple[PyTree, Array]:
        """Sequences (S, T, ...) of one model drawn from the posterior, and their states (S, T); see `HMM.sample`."""
        draw_key, key = jax.random.split(as_key(key))
        drawn = self.draw(params, key=draw_key)
        return HMM(self.family, self.num_states).sample(drawn, num_samples, key=key, length=length)


@jax.jit
def _log_prob(model: BayesianHMM, params: HMMParams, data: Sequences) -> Array:
    one = lambda x: model.structure.evidence(model.predictive_joint(params, x), Exact())
    return map_rows(one, data, model.rows_at_once(data))


@jax.jit
def _plug_in(model: BayesianHMM, params: HMMParams) -> HMMParams:
    return HMMParams(model.law.mean(params.mixing), model.components.at(params.components).q.plug.params)


@jax.jit
def _draw(model: BayesianHMM, params: HMMParams, key: Array) -> HMMParams:
    chain_key, key = jax.random.split(key)
    mixing: ChainMixing = model.law.draw(chain_key, params.mixing)
    return HMMParams(mixing, model.components.at(params.components).q.draw(key)[0])
