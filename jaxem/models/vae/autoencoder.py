"""The model behind `VAE`: an encoder amortises the E-step, and gradients climb the same ELBO."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import as_key, check_integer
from jaxem.core.normal import DiagonalNormal
from jaxem.core.numerics import is_concrete, weigh
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import as_data, check_params, takes_rows
from jaxem.core.tree import BLOCK_ROWS, PyTree, as_floats, float_dtype, num_rows, sum_rows
from jaxem.estimators import SGVBA, SGVBB, Estimator
from jaxem.likelihoods import Likelihood
from jaxem.likelihoods.columns import Columns
from jaxem.model import ELBOModel, Health
from jaxem.models.mixture import Mixture
from jaxem.models.vae import checks as _vae_checks
from jaxem.models.vae import latents as _vae_latents
from jaxem.models.vae.latents import Evidence, MixturePrior, as_posterior, observed
from jaxem.networks import Network

# Standard normal draws that a mixture prior starts from, and the smallest weight of the KL: the objective is evaluated
# as beta times the ELBO of log p(x | z) / beta.
PRIOR_DRAWS, MIN_BETA = 1000, 1e-6
# Nats for each entry by which an ELBO may miss that of independent columns, as one estimated at such an optimum does.
ENTRY = 0.01


@dataclass
class VariationalAutoencoder(ELBOModel):
    """A latent-variable model with neural networks for p(x | z) and q(z | x); made by `VAE`.

        z_n ~ prior,   x_n | z_n ~ likelihood(decoder(z_n)),   q(z_n | x_n) = N(mean, diag(variance)) by the encoder

    Params are a dict: "encoder", "decoder" (as the networks made them), "likelihood" (a learned noise scale, and the
    coordinates of the columns) and "inputs" (those of the encoder's inputs), and where there are any "prior" (a
    mixture's) and "baseline" (the score function's running one). Coordinates and baseline are not climbed; a dict
    without them is of networks in the data's own units. They lie in the params, as these mean nothing without them:
    any `VAE` of the same networks may use the params, whatever it is bound to.

    ELBO.data is an estimate with the noise of a given key, at beta = 1 whatever the training does; with `IWAE` it is
    the importance-weighted bound. ELBO.params is the penalty of a mixture prior, else 0. Two keys give two values.

    Attributes:
      encoder: `Network`; data to the parameters of q.
      decoder: `Network`; z (n, Q) to the outputs that the likelihood asks for.
      likelihood: `jaxem.likelihoods.Likelihood`.
      estimator: `Estimator` of the ELBO and its gradient.
      prior: None for N(0, I), or a `Mixture` whose params are climbed with the rest.
      beta: weight of the KL in training, a number or an array over passes (its last entry goes on).
      refinement_rate: step size of the refinements.
      latent_dim: Q.
      num_refinements: gradient steps on q of each datum after the encoder.
      num_score_samples: evaluations of the estimator that ELBO.data averages.
      standardise: "columns", "table" or None; see `VAE`.
      coordinates: of a bound model, what "inputs" and "likelihood" of its starts are.
      least: of a bound model, ELBO.data of independent columns less 0.01 nats for each entry.
    """

    encoder: Network
    decoder: Network
    likelihood: Likelihood
    estimator: Estimator
    prior: Mixture | None = None
    beta: float | Array = 1.0
    refinement_rate: float | Array = 0.1
    latent_dim: int = static(default=2)
    num_refinements: int = static(default=0)
    num_score_samples: int = static(default=1)
    standardise: str | None = static(default="columns")
    coordinates: PyTree = None
    least: Array | None = None

    def __repr__(self) -> str:
        prior = "" if self.prior is None else f", prior={self.prior!r}"
        estimator = f"{type(self.estimator).__name__}({self.estimator.num_samples})"
        return f"VAE(latent_dim={self.latent_dim}, {type(self.likelihood).__name__}, {estimator}{prior})"

    params_type: ClassVar[type] = dict

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks the settings, the support of the likelihood and the shapes of both networks."""
        _vae_checks.check_support(self, data)
        if params is None:
            _vae_checks.check(self, data)
        else:
            _vae_checks.check_width(self, data, params)

    def bind(self, data: PyTree, weights: Array) -> "VariationalAutoencoder":
        """Binds the coordinates of the columns, what columns reach without latents, and a mixture prior's penalty."""
        coordinates = self._coordinates(data, weights)
        model = dataclasses.replace(self, coordinates=coordinates, least=self._least(coordinates, data, weights))
        if self.prior is None:
            return model
        draws, share = self._draws(float_dtype(data), jnp.sum(weights))
        return dataclasses.replace(model, prior=self.prior.bind(draws, share))

    def _draws(self, dtype: Any, total: Array) -> tuple[Array, Array]:
        draws = jax.random.normal(jax.random.key(0), (PRIOR_DRAWS, self.latent_dim), dtype)
        return draws, jnp.full(PRIOR_DRAWS, total / PRIOR_DRAWS, dtype)

    def _coordinates(self, data: PyTree, weights: Array) -> dict[str, PyTree]:
        """The starting params "inputs" and "likelihood"."""
        x, common = observed(data), self.standardise == "table"
        noise = None if self.standardise is None else self.likelihood.standardise(x, weights, common)
        return {
            "inputs": () if self.standardise is None else self.likelihood.inputs(x, weights, common),
            "likelihood": self.likelihood.init(x, weights) if noise is None else noise,
        }

    def _least(self, coordinates: dict[str, PyTree], data: PyTree, weights: Array) -> Array | None:
        """The log-likelihood of outputs that are 0, less 0.01 nats for each entry; None where 0 has no such meaning."""
        x, noise = observed(data), coordinates["likelihood"]
        if self.standardise is None:
            noise = self.likelihood.standardise(x, weights)
        num = None if noise is None else self.likelihood.num_outputs(x.shape[1])
        if num is None:
            return None

        def block(x: Array, w: Array) -> Array:
            return jnp.sum(weigh(w, self.likelihood.log_prob(noise, jnp.zeros((x.shape[0], num), x.dtype), x)))

        found = sum_rows(block, x, weights, BLOCK_ROWS)
        return found - ENTRY * x.shape[1] * jnp.sum(weights)

    def least_elbo(self) -> Array | None:
        """ELBO.data of independent columns of the bound data, each with its mean and spread, less 0.01 nats an entry.

        None where the likelihood has no such number. A fit that ends below it has learned nothing: UNDERFIT.
        """
        return self.least

    def init(self, key: Array, data: PyTree, weights: Array | None) -> dict[str, PyTree]:
        """Params of both networks' own starts; a mixture prior starts from a partition of standard normal draws."""
        dtype = float_dtype(data)
        weights = jnp.ones(num_rows(data), dtype) if weights is None else weights
        encoder, decoder, prior = jax.random.split(key, 3)
        params = dict(self._coordinates(data, weights) if self.coordinates is None else self.coordinates)
        seen = self._seen(params, jax.tree.map(lambda a: a[:1], data))
        params["encoder"] = self.encoder.init(encoder, seen)
        params["decoder"] = self.decoder.init(decoder, jnp.zeros((1, self.latent_dim), dtype))
        if self.prior is not None:
            params["prior"] = self.prior.init(prior, *self._draws(dtype, jnp.sum(weights)))
        baseline = getattr(self.estimator, "baseline", None)
        if baseline is not None:
            params["baseline"] = jnp.asarray(baseline, dtype)
        return params

    def constraints(self) -> dict[str, PyTree]:
        """A prefix of the params: networks are real as a whole."""
        spec: dict[str, Any] = {"encoder": constraints.Real(), "decoder": constraints.Real()}
        spec |= {"inputs": constraints.Fixed(), "likelihood": self.likelihood.constraints()}
        if self.prior is not None:
            spec["prior"] = self.prior.constraints()
        if getattr(self.estimator, "baseline", None) is not None:
            spec["baseline"] = constraints.Fixed()
        return spec

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """Sum of weights * the estimator's values at beta = 1, nats; raises ValueError without a key."""
        if key is None:
            raise ValueError("key: the ELBO of a VAE is an estimate, which needs a random key; found None")
        one = lambda key: self._total(params, data, weights, key, None)
        if self.num_score_samples == 1:
            return one(key)
        return jnp.mean(jax.lax.map(one, jax.random.split(key, self.num_score_samples)))

    def training_elbo(self, params: PyTree, data: PyTree, weights: Array, key: Array, step: Array) -> Array:
        """What gradients climb at pass `step`: E_q[log p(x | z)] - beta KL in place of the ELBO, nats."""
        beta = jnp.atleast_1d(jnp.asarray(self.beta, float_dtype(params)))
        return self._total(params, data, weights, key, beta[jnp.minimum(step, beta.shape[0] - 1)])

    def adapt(self, params: PyTree, value: Array) -> PyTree:
        """Params with the score function's running baseline moved towards `value`, nats for each datum."""
        if "baseline" not in params:
            return params
        moved: Any = dataclasses.replace(self.estimator, baseline=params["baseline"]).update(value)  # type: ignore[call-arg]
        return {**params, "baseline": moved.baseline}

    def elbo_params(self, params: PyTree) -> Array:
        """The penalty of a mixture prior, nats; 0 without one."""
        return super().elbo_params(params) if self.prior is None else self.prior.elbo_params(params["prior"])

    def _total(self, params: PyTree, data: PyTree, weights: Array | None, key: Array, beta: Array | None) -> Array:
        num, dtype = num_rows(data), float_dtype(params)
        weights = jnp.ones(num, dtype) if weights is None else weights

        def block(rows: tuple[PyTree, Array], w: Array) -> Array:
            x, index = rows
            values = self.values(params, x, key if num <= BLOCK_ROWS else jax.random.fold_in(key, index[0]), beta)
            return jnp.sum(jnp.where(w > 0, w * values, 0))

        blocks = block if num <= BLOCK_ROWS else jax.checkpoint(block, prevent_cse=False)
        return sum_rows(blocks, (data, jnp.arange(num, dtype=jnp.int32)), weights, BLOCK_ROWS)

    def values(self, params: PyTree, data: PyTree, key: Array, beta: Array | None = None) -> Array:
        """(n,) the estimator's value for each datum, nats; traceable, with the gradient that the estimator states.

        Args:
          params: as from `init`.
          data: n rows in the dtype of the params, all at once.
          key: of the noise.
          beta: weight of the KL; None for 1.

        Returns:
          (n,) nats.
        """
        estimator, baseline = self.estimator, params.get("baseline")
        if baseline is not None:
            baseline = baseline if beta is None else baseline / jnp.maximum(beta, MIN_BETA)
            estimator = dataclasses.replace(estimator, baseline=baseline)  # type: ignore[call-arg]
        key, refine = jax.random.split(key) if self.num_refinements else (key, key)
        q = self._posterior(params, data, refine, beta)
        return self._estimate(params, data, q, key, estimator, beta)

    def _estimate(
        self, params: PyTree, data: PyTree, q: Any, key: Array, estimator: Estimator, beta: Array | None = None
    ) -> Array:
        """(n,) beta times the ELBO of log p(x | z) / beta, which is E_q[log p(x | z)] - beta KL(q || prior)."""
        log_lik, prior = self.log_lik(params, data), self.latent_prior(params)
        if beta is None:
            return estimator(key, q, log_lik, prior)
        beta = jnp.maximum(beta, MIN_BETA)
        return beta * estimator(key, q, lambda z: log_lik(z) / beta, prior)

    def plain_estimator(self, num_samples: int, q: Any) -> Estimator:
        """An estimator of the ELBO itself: with the exact KL where there is one."""
        closed = self.prior is None and isinstance(q, DiagonalNormal)
        return SGVBB(num_samples) if closed else SGVBA(num_samples)

    def latent_prior(self, params: PyTree) -> Any:
        """The distribution of z."""
        if self.prior is None:
            return DiagonalNormal.standard(self.latent_dim, float_dtype(params))
        return MixturePrior(self.prior.at(params["prior"]))

    def log_lik(self, params: PyTree, data: PyTree) -> Callable[[Array], Array]:
        """The function z (n, Q) -> (n,) log p(x_n | z_n), nats."""
        x, noise = observed(data), params.get("likelihood", ())

        def evaluate(z: Array) -> Array:
            return self.likelihood.log_prob(noise, self.outputs(params, z), x)

        return evaluate

    def outputs(self, params: PyTree, z: Array) -> Any:
        """The decoder's outputs, arrays in the dtype of z."""
        found = self.decoder.apply(params["decoder"], z)
        return found.astype(z.dtype) if isinstance(found, Array) else found

    def _seen(self, params: PyTree, data: PyTree) -> PyTree:
        """What the encoder sees: the data in their coordinates; the rest of a tuple as it is."""
        inputs = params.get("inputs", ())
        if not isinstance(inputs, Columns):
            return data
        x = inputs.standardised(self.likelihood.features(observed(data)))
        return (x, *data[1:]) if isinstance(data, tuple) else x

    def _posterior(self, params: PyTree, data: PyTree, key: Any, beta: Array | None = None) -> Any:
        """Q(z | x) of each datum: the encoder's, refined with a key where the model is semi-amortised."""
        outputs = self.encoder.apply(params["encoder"], self._seen(params, data))
        q = as_posterior(outputs, self.latent_dim, float_dtype(params))
        if not self.num_refinements:
            return q
        estimator = self.plain_estimator(1, q)
        objective = lambda q, key: jnp.sum(self._estimate(params, data, q, key, estimator, beta))

        def refine(q: DiagonalNormal, key: Array) -> tuple[DiagonalNormal, None]:
            gradient = jax.grad(objective)(q, key)
            rate = jnp.asarray(self.refinement_rate, float_dtype(params))
            return jax.tree.map(lambda a, d: a + rate * d, q, gradient), None

        return jax.lax.scan(refine, q, jax.random.split(key, self.num_refinements))[0]

    def health(self, params: PyTree) -> Health:
        """That of a mixture prior, and how much of a shared noise variance is the floor's."""
        health = super().health(params) if self.prior is None else self.prior.health(params["prior"])
        share = self.likelihood.influence(params.get("likelihood", ()))
        least = health.least_elbo if self.least is None else self.least
        influence = health.influence if share is None else jnp.maximum(health.influence, share)
        return dataclasses.replace(health, influence=influence, least_elbo=least)

    def canonical(self, params: PyTree, reorder: bool | Array = True) -> PyTree:
        """Components of a mixture prior by mixing, largest first."""
        return params if self.prior is None else {**params, "prior": self.prior.canonical(params["prior"], reorder)}

    def coincident(self, params: PyTree) -> Array:
        """Whether two components of a mixture prior are the same."""
        return super().coincident(params) if self.prior is None else self.prior.coincident(params["prior"])

    @takes_rows
    def encode(self, params: PyTree, data: PyTree, *, key: Array | None = None) -> Any:
        """Q(z | x) of each datum, a `DiagonalNormal` (N, Q) or what the encoder returns; `.mean()` are the codes.

        A semi-amortised model needs a key, for the noise of its refinements.
        """
        if key is None and self.num_refinements:
            raise ValueError("key: a semi-amortised model needs a random key to refine q; found None")
        return _encode(self, params, data, key)

    def decode(self, params: PyTree, z: Any) -> Array:
        """E[x | z] for z (n, Q): (n, D), or (n, D, L) probabilities of a categorical likelihood."""
        check_params(self, params)
        z = as_floats(as_data(z, "z") if is_concrete(z) else z, float_dtype(params))
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z: expected shape (n, {self.latent_dim}); found {z.shape}")
        return _decode(self, params, z)

    def reconstruct(self, params: PyTree, data: PyTree, *, key: Array | None = None) -> Array:
        """E[x | z] at the mean of q(z | x): like `decode`."""
        return self.decode(params, self.encode(params, data, key=key).mean())

    def sample(self, params: PyTree, num_samples: int, *, key: Array) -> tuple[Array, Array]:
        """Draws from the model: data (num_samples, D), and the z (num_samples, Q) that they came from."""
        check_params(self, params)
        check_integer("num_samples", num_samples, 1)
        return _sample(self, params, as_key(key), int(num_samples))

    @takes_rows
    def elbo(self, params: PyTree, data: PyTree, *, key: Array, num_samples: int = 100) -> Array:
        """(N,) ELBO of each datum, nats, at beta = 1 and never the importance-weighted bound; in blocks of rows."""
        return _vae_latents.elbo(self, params, data, key, num_samples)

    def log_prob(self, params: PyTree, data: PyTree, *, key: Array, num_samples: int = 1000) -> Array:
        """(N,) estimates of log p(x), nats: `evidence(...).log_prob`, below it in expectation."""
        return self.evidence(params, data, key=key, num_samples=num_samples).log_prob

    @takes_rows
    def evidence(self, params: PyTree, data: PyTree, *, key: Array, num_samples: int = 1000) -> Evidence:
        """Log p(x) of each datum by importance sampling from q, with effective sample sizes.

            log p(x) = log E_q[p(x, z) / q(z | x)],   estimated by log mean over S draws

        Args:
          params: params.
          data: N rows.
          key: random key.
          num_samples: S >= 1.

        Returns:
          `Evidence`. Time of N S decoder evaluations, in chunks of rows and draws: memory does not grow with S.
        """
        return _vae_latents.evidence(self, params, data, key, num_samples)

    def active_units(self, params: PyTree, data: PyTree, threshold: float = 0.01, *, key: Array | None = None) -> Array:
        """(Q,) whether the variance over data of E[z_q | x] is above the threshold (Burda et al. 2016, section 5.2).

        A latent that is not active carries nothing of x: its posterior collapsed to the prior, up to sign and scale.
        A semi-amortised model needs a key, as in `encode`.
        """
        return jnp.var(self.encode(params, data, key=key).mean(), 0) > threshold

    def kl_per_dimension(self, params: PyTree, data: PyTree, *, key: Array | None = None) -> Array:
        """(Q,) mean over data of KL(q(z_q | x) || N(0, 1)), nats: near 0 where a latent's posterior has collapsed.

        Raises TypeError where the KL does not split: for a mixture prior, or a q that is no `DiagonalNormal`.
        A semi-amortised model needs a key, as in `encode`.
        """
        q = self.encode(params, data, key=key)
        if self.prior is not None or not isinstance(q, DiagonalNormal):
            found = "a mixture prior" if self.prior is not None else type(q).__name__
            raise TypeError(
                f"kl_per_dimension: expected a standard normal prior and a diagonal normal q; found {found}"
            )
        return jnp.mean(q.kl_per_dimension(self.latent_prior(params)), 0)


@jax.jit
def _encode(model: VariationalAutoencoder, params: PyTree, data: PyTree, key: Array | None) -> Any:
    return model._posterior(params, data, key)


@jax.jit
def _decode(model: VariationalAutoencoder, params: PyTree, z: Array) -> Array:
    return model.likelihood.mean(params.get("likelihood", ()), model.outputs(params, z))


def _draw(model: VariationalAutoencoder, params: PyTree, key: Array, num: int) -> tuple[Array, Array]:
    latent, noise = jax.random.split(key)
    prior = model.latent_prior(params)
    z = prior.sample(seed=latent, sample_shape=(num,))
    return model.likelihood.sample(noise, params.get("likelihood", ()), model.outputs(params, z)), z


_sample = jax.jit(_draw, static_argnums=3)
