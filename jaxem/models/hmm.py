"""Hidden Markov models over any observation family."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import threefry
from jaxem.core.arguments import as_key, check_flag, check_integer, check_number
from jaxem.core.checks import check_array, check_proportions, check_strength
from jaxem.core.foreign import named_fields
from jaxem.core.mesh import all_rows, as_copies, current, real_rows, take_rows
from jaxem.core.numerics import is_concrete, matmul, namespace, safe_log
from jaxem.core.pytree import dataclass, static
from jaxem.core.ragged import read_sequences, sequences
from jaxem.core.rows import check_params, read, takes_rows, where_it_lies
from jaxem.core.sequences import Sequences
from jaxem.core.stages import in_stages, stage
from jaxem.core.tree import PyTree, as_floats, float_dtype, map_rows
from jaxem.core.whole import of_all, total
from jaxem.families import Family
from jaxem.rules import Exact
from jaxem.structures import seeding
from jaxem.structures.chain import Chain, ChainMixing
from jaxem.structures.chain_law import ChainLaw
from jaxem.structures.forward_backward import ChainJoint, passed
from jaxem.structures.mixing import Proportions
from jaxem.structures.structured import Structured, first_step

# Steps of sequences that an E-step takes at once. Measured (sequences of 200 steps, 5 states): 8,000 to 60,000 are
# within a tenth of each other, 2,000 take nearly twice as long, as fewer sequences share the cost of a loop's step.
BLOCK_STEPS = 65_536
# Steps of the windows that a start looks at, where it does not look at all.
WINDOW = 200


@dataclass
class HMMParams:
    """Parameters of a hidden Markov model.

    Attributes:
      mixing: the chain's, `initial` (K,) and `transition` (K, K), from row to column.
      components: the family's params, vectorised over the K states.
    """

    mixing: ChainMixing
    components: Any

    @property
    def initial(self) -> Any:
        """(K,) of the first state: probabilities; of a Bayesian model their posterior."""
        return self.mixing.initial

    @property
    def transition(self) -> Any:
        """(K, K) of the next state (column) given the one before (row): probabilities, or posteriors of the rows."""
        return self.mixing.transition


class Sequential(Structured):
    """A model of sequences: a Markov chain of states under a family. `HMM` and `BayesianHMM` are such.

    Data are sequences in any of these forms, padded once on the host: an array (T, ...) or a frame, one sequence; a
    list of them; an array (S, T, ...), S of equal length, or a pair of it and their lengths (S,); `jaxem.sequences`.
    Answers have the same form: for one sequence (T, ...), for a list a list, else (S, T, ...). Weights are one number
    for each sequence. Derivatives go through `log_prob`; to them posteriors are constants.
    """

    _asked: ClassVar[tuple[str, ...]] = ("filtered", "log_predictive", "forecast", "log_forecast", "expected_durations")
    structure: ClassVar[Any] = Chain()
    params_type: ClassVar[Any] = HMMParams
    size_name: ClassVar[str] = "num_states"
    num_states: int
    allowed: Any

    @property
    def least_rows(self) -> tuple[str, int]:
        """One sequence; of its steps `check` asks for more."""
        return "", 1

    def opened(self, data: Any, name: str) -> Sequences:
        """Sequences of what a user holds."""
        if isinstance(data, list):
            data = [super(Sequential, self).opened(part, f"{name}[{i}]") for i, part in enumerate(data)]
        elif not isinstance(data, Sequences):
            data = super().opened(data, name)
        return read_sequences(data, name, keys=self.row_keys)

    def rows_at_once(self, data: Sequences) -> int:
        """Sequences of a block."""
        return max(1, BLOCK_STEPS // data.observed.shape[1])

    def check_settings(self, data: Sequences) -> None:
        """Checks which transitions are allowed, and that there are as many observations as states."""
        if self.allowed is not None and is_concrete(self.allowed):
            num = self.num_states
            check_array("allowed", self.allowed, ((num, num),))
            allowed = np.asarray(self.allowed)
            if not np.isin(allowed, (0, 1)).all():
                raise ValueError(f"allowed: expected a mask ({num}, {num}) of 0 and 1; found {self.allowed!r}")
            if not allowed.any(1).all():
                row = int(np.argmin(allowed.any(1)))
                raise ValueError(f"allowed: expected a transition from each state; found none from state {row}")
        if is_concrete(data):
            xp, marks = where_it_lies(data.observed)
            if int(xp.sum(marks)) < self.num_states:
                found = int(xp.sum(marks))
                raise ValueError(f"data: expected at least num_states = {self.num_states} observations; found {found}")

    @in_stages
    def init(self, key: Array, data: Sequences, weights: Array) -> Any:
        """Params of a random partition of the steps, in whole sequences or in windows of them; the model is bound."""
        key, rows_key = threefry.split(key)
        num, steps = data.observed.shape
        if real_rows(num) * steps > self.init_size:
            data, weights = _windows(rows_key, data, weights, self.init_size)
        else:
            data, weights = all_rows((data, weights))
        return first_step(self, data, self._partition(key, data, weights), weights)

    def canonical(self, params: Any, reorder: bool | Array = True) -> Any:
        """States by their expected share of the steps, largest first; as they are where `allowed` orders them."""
        if self.allowed is not None:
            reorder = False
        if reorder is True:
            reorder = _rank(self, params)
        if reorder is not False and namespace(params) is np:
            reorder = np.asarray(reorder)  # type: ignore[assignment]
        return super().canonical(params, reorder)

    @takes_rows
    def filtered(self, params: Any, data: Any) -> Array:
        """(S, T, K) p(z_t | x_1 .. x_t), each state given the observations so far; 0 beyond the end."""
        return _filtered(self, params, data)

    @takes_rows
    def log_predictive(self, params: Any, data: Any) -> Array:
        """(S, T) log p(x_t | x_1 .. x_(t-1)), nats, whose sum is `log_prob`; 0 without an observation."""
        return _log_predictive(self, params, data)

    @takes_rows
    def forecast(self, params: Any, data: Any, num_steps: int = 1) -> Array:
        """(S, num_steps, K) p(z_(T+h) | x_1 .. x_T) for h = 1 .. num_steps, the states after the end.

        With `log_prob` of the family, the predictive density of what is to come: see `log_forecast`.
        """
        check_integer("num_steps", num_steps, 1)
        return _forecast(self, params, data, int(num_steps))

    @takes_rows
    def log_forecast(self, params: Any, data: Any, values: Any, num_steps: int = 1) -> Array:
        """(S, num_steps, V) log p(x_(T+h) = values_v | x_1 .. x_T), nats, of V values such as one observation is."""
        check_integer("num_steps", num_steps, 1)
        if is_concrete(values):
            values, _ = read(values, "values", self.row_keys)
            try:
                self.check_components(sequences(values), params)
            except (TypeError, ValueError) as error:
                raise type(error)(str(error).replace("data", "values", 1)) from None
        return _log_forecast(self, params, data, as_floats(values, float_dtype(params)), int(num_steps))

    def log_prob_of_rows(self, params: Any, rows: PyTree) -> Array:
        """(n, K) log-density of rows in each state, nats."""
        return self.components.log_prob(params.components, rows)

    def predictive_joint(self, params: Any, data: Sequences) -> ChainJoint:
        """The log-joint at expected probabilities and the log-densities of rows; of a point its log-joint."""
        logs = jax.tree.map(safe_log, self.law.mean(params.mixing))
        return self.structure.join(logs, self.log_prob_of_rows(params, self.structure.rows(data)), data)

    def counted(self, data: Sequences, weights: Array) -> tuple[PyTree, Array, Array]:
        """The rows of all observations, their weights, and the mean number of steps of a sequence."""
        steps, sequences = of_all(_counts, weights, data.length)
        length = steps / sequences
        return self.structure.rows(data), self.structure.row_weights(weights, data), length

    def expected_durations(self, params: Any) -> Array:
        """(K,) expected number of steps that a visit to each state lasts, 1 / (1 - A_kk)."""
        check_params(self, params)
        rows = self.law.mean(params.mixing).transition
        return 1 / (1 - jnp.diagonal(rows))


def _counts(weights: Array, length: Array) -> Array:
    """(2,) the weights of all steps, and of all sequences."""
    return jnp.stack([jnp.sum(weights * length), jnp.sum(weights)])


@named_fields
@dataclass
class HMM(Sequential):
    """Hidden Markov model with K states over one family.

        z_1 ~ initial,   z_t | z_(t-1) = j ~ transition_j,   x_t | z_t = k ~ family(components_k)

    `EM()` is Baum-Welch: the E-step is forward-backward over all sequences, O(T K^2) time and O(T K) memory for each,
    the M-step that of the family. `EM(Hard())` is Viterbi training, `EM(Tempered(T))` anneals, `StochasticEM()` draws
    paths by forward filtering and backward sampling, `OnlineEM()` goes over batches of sequences. A step without an
    observation (see `jaxem.sequences`) is summed over; known or forbidden states are told by `partly_labelled`.

    A random start is a partition of the observations as for a `Mixture`, by default "kmeans++" cells without Lloyd
    steps, which differ more from key to key (four states of the earthquakes of `examples/earthquakes.py`: the best
    optimum from 17 of 128 starts, from none after Lloyd steps), with the transitions counted in it and one more
    of each kind. States come back by their expected share of the steps, largest first, unless `allowed` orders them.

    Attributes:
      family: a `jaxem.families.Family`.
      num_states: K >= 1.
      initial: (K,) the first state's probabilities where they are given; None for free ones.
      stationary: whether the first state has the stationary distribution of the transitions, as in a series that
        began long before its first step. An M-step then climbs, row after row, and does not maximise at once.
      allowed: (K, K) which transitions there are, 0 or 1: `np.triu(np.ones((K, K)))` is a left-right chain. Others stay
        at probability 0. None for all.
      initial_pseudo_counts: a; the first state's probabilities have the prior Dirichlet(1 + a, ..., 1 + a), in
        ELBO.params up to its constant. 0 is maximum likelihood.
      transition_pseudo_counts: the same for each row of the transitions.
      stickiness: what is added to that of staying in a state.
      init_method: name of the start; see `Mixture`.
      init_size: most steps that a start looks at.
      total_weight: number of observations, weights included, set by `bind`.
      mean_length: steps of a sequence on average, set by `bind`.

    References:
      Rabiner (1989), A tutorial on hidden Markov models; Zucchini, MacDonald and Langrock (2016), Hidden Markov Models
      for Time Series.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> states = np.repeat([0, 1, 0, 1], 50)
      >>> x = np.random.default_rng(0).poisson(np.where(states, 9.0, 2.0))[:, None]
      >>> fit = jaxem.fit(HMM(jaxem.families.Poisson(), 2), x, key=jax.random.key(0), num_restarts=4)
      >>> path = np.asarray(fit.predict(x))
      >>> path.shape, bool(max((path == states).mean(), (path != states).mean()) > 0.95)
      ((200,), True)
    """

    family: Family
    num_states: int = static()
    initial: Array | None = None
    stationary: bool = static(default=False)
    allowed: Any = None
    initial_pseudo_counts: float | Array = 0.0
    transition_pseudo_counts: float | Array = 0.0
    stickiness: float | Array = 0.0
    init_method: str = static(default="kmeans++")
    init_size: int = static(default=10_000)
    total_weight: Array | None = dataclasses.field(default=None, repr=False)
    mean_length: Array | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"HMM({self.family!r}, {self.num_states})"

    @property
    def law(self) -> ChainLaw:
        """Points on simplices."""
        first: Any = Proportions(self.initial_pseudo_counts)
        if self.stationary:
            first = None
        elif self.initial is not None:
            first = self.initial
        length = 1.0 if self.mean_length is None else self.mean_length
        return ChainLaw(first, Proportions(self.transition_pseudo_counts), self.stickiness, self.allowed, length)

    @property
    def components(self) -> Family:
        """Points: the family itself."""
        return self.family

    def check_settings(self, data: Sequences) -> None:
        """Checks the chain's settings."""
        super().check_settings(data)
        check_flag("stationary", self.stationary)
        for name in ("initial_pseudo_counts", "transition_pseudo_counts"):
            check_strength(name, getattr(self, name))
        if self.initial is not None:
            if self.stationary:
                raise ValueError("initial: expected None with stationary=True; found both")
            check_array("initial", self.initial, ((self.num_states,),))
            check_proportions("initial", self.initial)

    def check_components(self, data: Sequences, params: HMMParams | None) -> None:
        """The family's checks, that params are of K states, and of no transition that is not allowed."""
        if params is not None:
            found = params.initial.shape[-1]
            if found != self.num_states:
                raise ValueError(f"params: expected those of {self.num_states} states; found {found}")
            if self.allowed is not None and is_concrete(params.transition, self.allowed):
                beside = np.asarray(params.transition) * (np.asarray(self.allowed) == 0)
                if beside.any():
                    raise ValueError(
                        f"params: expected probability 0 for transitions that are not allowed; found {beside.max():.3g}"
                    )
        super().check_components(data, params)

    def bind(self, data: Sequences, weights: Array) -> "HMM":
        """Binds the family to the observations, and keeps their number and the mean length."""
        rows, counts, length = self.counted(data, weights)
        family = self.family.bind(rows, counts)
        return dataclasses.replace(self, family=family, total_weight=total(counts), mean_length=length)

    def canonical(self, params: HMMParams, reorder: bool | Array = True) -> HMMParams:
        """The same, with a first state that is given, or follows from the transitions, as it must be."""
        params = super().canonical(params, reorder)
        if not self.stationary and self.initial is None:
            return params
        mixing = _first(self, params.mixing)
        return dataclasses.replace(params, mixing=mixing)

    def coincident(self, params: HMMParams) -> Array:
        """Whether two states are equal, in what they show and in what follows them."""
        xp, rows = namespace(params), params.transition
        gap = xp.max(xp.abs(rows[:, None] - rows[None]), -1)
        same = self.family.coincident(params.components) & (gap <= 1e-4)
        return xp.any(same & ~xp.eye(self.num_states, dtype=bool))

    def num_parameters(self, params: HMMParams) -> int:
        """Free parameters: of the first state, of the allowed transitions, and the family's."""
        num = self.num_states
        moves: Any = num * num if self.allowed is None else namespace(self.allowed).sum(self.allowed > 0)
        moves = int(moves) if is_concrete(moves) else moves
        first = 0 if self.stationary or self.initial is not None else num - 1
        return first + moves - num + self.family.num_parameters(params.components, num)

    def sample(self, params: HMMParams, num_samples: int, *, key: Array, length: int) -> tuple[PyTree, Array]:
        """Draws sequences.

        Args:
          params: parameters.
          num_samples: S >= 1.
          key: random key.
          length: T >= 1, steps of each.

        Returns:
          data (S, T, ...) and the states (S, T).

        Raises:
          TypeError, ValueError: no params of this model, no count, no key.
        """
        check_params(self, params)
        check_integer("num_samples", num_samples, 1)
        check_integer("length", length, 1)
        return _sample(self, params, as_key(key), int(num_samples), int(length))

    def make_params(self, initial: Any, transition: Any, **components: Any) -> HMMParams:
        """Params from plain arrays, to start a fit from or to evaluate.

        Args:
          initial: (K,) probabilities of the first state.
          transition: (K, K) of the next (column) given the one before (row).
          **components: the family's own, as for `Mixture.make_params`.

        Returns:
          `HMMParams`.

        Raises:
          ValueError: shapes do not fit together, or probabilities do not sum to 1.
        """
        num = self.num_states
        check_number("initial", initial, 0, dims=(1,), what=f"an array ({num},) of probabilities")
        check_number("transition", transition, 0, dims=(2,), what=f"an array ({num}, {num}) of probabilities")
        parts = self.family.make_params(**components)
        dtype = jax.tree.leaves(parts)[0].dtype
        first, rows = jnp.asarray(initial).astype(dtype), jnp.asarray(transition).astype(dtype)
        for name, value, shape in (("initial", first, (num,)), ("transition", rows, (num, num))):
            if value.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}; found {value.shape}")
            check_proportions(name, value)
        return HMMParams(ChainMixing(first, rows), parts)


def _windows(key: Array, data: Sequences, weights: Array, size: int) -> tuple[Sequences, Array]:
    """As many windows of sequences as have `size` steps in all, drawn in proportion to their steps."""
    width = min(data.observed.shape[1], size, WINDOW)
    which, place = _places(key, *all_rows((data.length, weights)), max(1, size // width), width)
    if current() is not None:
        data, which = as_copies(take_rows(data, which)), jnp.arange(which.shape[0], dtype=which.dtype)
    return _cut(data, which, place, width)


@stage(3, 4)
def _places(key: Array, length: Array, weights: Array, num: int, width: int) -> tuple[Array, Array]:
    """Of `num` windows the sequence and the step that they begin at."""
    which_key, place_key = jax.random.split(key)
    chance = jnp.log(jnp.where(weights > 0, weights * length, 1))
    which = jax.random.categorical(which_key, jnp.where(weights > 0, chance, -jnp.inf), shape=(num,))
    room = jnp.maximum(length[which] - width, 0)
    place = (seeding.uniform(place_key, which.shape, room.dtype) * (room + 1)).astype(jnp.int32)
    return which, jnp.minimum(place, room.astype(jnp.int32))


@stage(3)
def _cut(data: Sequences, which: Array, place: Array, width: int) -> tuple[Sequences, Array]:
    def cut(leaf: Array) -> Array:  # by steps: whole sequences may be long
        return leaf[which[:, None], place[:, None] + jnp.arange(width, dtype=place.dtype)[None]]

    length = jnp.minimum(data.length[which], width)
    return Sequences(jax.tree.map(cut, data.values), length, cut(data.observed)), jnp.ones_like(length)


@jax.jit
def _first(model: HMM, mixing: ChainMixing) -> ChainMixing:
    return dataclasses.replace(mixing, initial=model.law.first(mixing.transition))


@jax.jit
def _rank(model: Sequential, params: Any) -> Array:
    return model.law.rank(params.mixing)


@jax.jit
def _filtered(model: Sequential, params: Any, data: Sequences) -> Array:
    here = model.at(params)
    one = lambda x: passed(here.explain(x)[0], Exact(), lambda found: found.filtered())
    return map_rows(one, data, model.rows_at_once(data))


@jax.jit
def _log_predictive(model: Sequential, params: Any, data: Sequences) -> Array:
    one = lambda x: passed(model.predictive_joint(params, x), Exact(), lambda found: found.gain)
    return map_rows(one, data, model.rows_at_once(data))


@partial(jax.jit, static_argnums=3)
def _forecast(model: Sequential, params: Any, data: Sequences, num_steps: int) -> Array:
    filtered = _filtered(model, params, data)
    last = jnp.take_along_axis(filtered, data.length.astype(jnp.int32)[:, None, None] - 1, 1)[:, 0]
    rows = model.law.mean(params.mixing).transition

    def step(state: Array, _: Any) -> tuple[Array, Array]:
        new = matmul(state, rows)
        return new, new

    return jnp.moveaxis(jax.lax.scan(step, last, length=num_steps)[1], 0, 1)


@partial(jax.jit, static_argnums=4)
def _log_forecast(model: Sequential, params: Any, data: Sequences, values: PyTree, num_steps: int) -> Array:
    states = _forecast(model, params, data, num_steps)
    log_prob = model.log_prob_of_rows(params, values)
    return jax.nn.logsumexp(safe_log(states)[:, :, None] + log_prob[None, None], -1)


@partial(jax.jit, static_argnums=(3, 4))
def _sample(model: HMM, params: HMMParams, key: Array, num: int, length: int) -> tuple[PyTree, Array]:
    first_key, key, data_key = jax.random.split(key, 3)
    first = jax.random.categorical(first_key, safe_log(params.initial), shape=(num,))
    logs = safe_log(params.transition)

    def step(state: Array, key: Array) -> tuple[Array, Array]:
        new = jax.random.categorical(key, logs[state])
        return new, new

    _, rest = jax.lax.scan(step, first, jax.random.split(key, length - 1))
    states = jnp.concatenate([first[:, None], rest.T], 1)
    rows = model.family.sample(data_key, params.components, states.reshape(-1))
    return jax.tree.map(lambda leaf: leaf.reshape(num, length, *leaf.shape[1:]), rows), states
