"""Generalised EM: the M-step by a few steps of a gradient optimiser."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows, accept, at_candidate, prepared, rule_at, rule_of
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_constraints
from jaxem.core.ascent import ascend, check_optimizer
from jaxem.core.numerics import weigh
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.model import At
from jaxem.rules import Rule


@dataclass
class GeneralizedEM(Algorithm):
    """EM for models without a closed M-step: the responsibilities held fixed, params climb by an optax optimiser.

        E: q = rule(log-joint at theta_old)
        M: num_steps updates that raise Q(theta) + G(theta),   Q = sum_n w_n E_q[log p(x_n, z_n | theta)]

    The M-step moves in unconstrained coordinates (`model.constraints()`), from the old params. If Q + G ends below its
    start or not finite, the step is halved back towards the old coordinates up to 16 times, and then the old params are
    kept. So Q + G never falls, and with an exact E-step neither does the ELBO: any increase of Q is enough for that.

    Stopping: the inner loop has a fixed length, it does not wait for the maximum; the fit ends by its own `Stop`
    rule on the change of the ELBO from one E-step to the next. A first-order optimiser with a small learning rate makes
    small changes, which that rule takes for convergence: lower `atol`, or use more inner steps. A step that the
    safeguard rejects whole changes nothing, and ends the fit as CONVERGED: an optimiser whose steps do not shrink with
    the gradient (Adam) may end short of the optimum, by 0.001 nats in a trial.

    Boundary values stay where they are, as under EM: a proportion of exactly 0, a positive entry of 0, a probability of
    0 or 1 have no finite coordinate and are held fixed.

    Works for any `DiscreteLatent` (`chunked` included) that declares constraints; `m_step` is not used. A step costs an
    E-step and `num_steps` or more values and gradients of Q, each like a few E-steps, in the model's blocks of rows: no
    (N, K) array exists where the E-step needs none.

    Attributes:
      optimizer: an optax `GradientTransformation`, with or without a line search; None for `optax.lbfgs()`. It is
        part of the program: a learning rate in it is fixed at compilation, and a new optimiser object compiles anew. It
        starts afresh in each M-step and sees -(Q + G) / sum(weights), so that rates do not depend on N.
      num_steps: updates in one M-step.
      rule: the E-step rule; None for the model's own.

    Raises (in `fit`, before compilation):
      TypeError: the model is no `DiscreteLatent` or declares no constraints.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (60, 1)).at[:30].add(20.0)
      >>> fit = jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(1), algorithm=GeneralizedEM())
      >>> fit.params.mixing.round(2).tolist()
      [0.5, 0.5]

    References:
      Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, section 3
      (generalised EM); Lange (1995), A gradient algorithm locally equivalent to the EM algorithm.
    """

    optimizer: Any = static(default=None)
    num_steps: int = static(default=5)
    rule: Rule | None = None

    climbs_by: ClassVar[str] = "gradient"

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "GeneralizedEM":
        """The algorithm with its rule's schedule as an array; raises for a model without log-joint or constraints."""
        super().prepare(model, data, key, num_steps)
        if not hasattr(model, "log_joint") or not hasattr(model, "rows_at_once"):
            raise TypeError(
                "algorithm: GeneralizedEM needs a model with a log_joint of states that can be enumerated; found "
                f"{type(model).__name__}"
            )
        rule = prepared(self.rule, model, key, num_steps)
        check_constraints(model.constraints())
        check_optimizer(self.optimizer, self.num_steps)
        return dataclasses.replace(self, rule=rule)

    def settled(self, model: Any, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on."""
        return rule_of(self.rule, model).settled(step)

    def evaluate(self, model: Any, state: EMState, data: PyTree, weights: Array) -> Found:
        """The score of the candidate; no statistics."""
        rule = rule_at(self.rule, model, state)
        return Found((), at_candidate(model, state).e_step(data, weights, rule).elbo_data, jnp.sum(weights))

    def update(self, model: Any, state: EMState, found: Found, rows: Rows | None = None) -> EMState:
        """Accepts the candidate or ends the restart, and climbs to the next, for which it needs the rows."""
        assert rows is not None
        here = at_candidate(model, state)
        objective = _expected(model, here, *rows, rule_at(self.rule, model, state))
        spec = model.constraints()
        following = ascend(objective, state.candidate, spec, self.optimizer, self.num_steps, found.weight)
        promised = rule_of(self.rule, model).monotone(jnp.maximum(state.step - 1, 0))
        return accept(model, state, found, here.elbo_params(), following, promised=promised)


def _expected(model: Any, old: At, data: PyTree, weights: Array, rule: Rule) -> Any:
    """Q(theta, old) + G(theta) as a function of theta; responsibilities at `old` are recomputed a block at a time."""
    size = model.rows_at_once(data)

    def objective(params: PyTree) -> Array:
        new = model.at(params)

        def block(x: PyTree, w: Array, number: Any) -> Array:
            def term(resp: Array, log_joint: Array) -> Array:
                resp = weigh(w, resp)
                used = resp > 0  # elsewhere a log-joint may be -inf, and 0 times it is 0
                return jnp.sum(jnp.where(used, resp * jnp.where(used, log_joint, 0), 0))

            resp = old.infer(old.log_joint(x), rule.fold(number))[1]
            return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(term, resp, new.log_joint(x))))

        # Kept for the backward pass are the rows of a block, not its (rows, K) arrays.
        blocks = block if size >= _tree.num_rows(data) else jax.checkpoint(block, prevent_cse=False)
        return _tree.sum_blocks(blocks, data, weights, size) + new.elbo_params()

    return objective
