"""VAE: a variational autoencoder from any two networks."""

from typing import Any

from jax import Array

from jaxem.core.foreign import constructor
from jaxem.core.pytree import dataclass
from jaxem.estimators import SGVBA, SGVBB, Estimator
from jaxem.likelihoods import Bernoulli, FromDecoder, Likelihood
from jaxem.models.mixture import Mixture
from jaxem.models.vae import checks
from jaxem.models.vae.autoencoder import VariationalAutoencoder
from jaxem.networks import as_network

BERNOULLI = Bernoulli()


@dataclass
class VAE(VariationalAutoencoder):
    """Variational autoencoder: networks for p(x | z) and q(z | x), climbed together on one ELBO.

        z ~ N(0, I) or a mixture,   x | z ~ likelihood(decoder(z)),   q(z | x) = N(mean(x), diag(variance(x)))
        ELBO.data = sum_n w_n { E_q[log p(x_n | z)] - KL(q(z | x_n) || p(z)) }

    Data are an array (N, D) in the likelihood's support, or a tuple (x, more) of which the encoder sees all and the
    likelihood x. Fitted by `GradientAscent`: restarts, statuses, traces and weights are those of any model.

    Data may come in any units, with any offset: networks see and say standardised columns, whatever else is given or
    returned is in the data's own units, densities too. Where a start's decoder says 0, columns are independent, each
    with its own mean and spread; a fit whose ELBO ends more than 0.01 nats an entry below that is UNDERFIT. Means and
    deviations are those of the rows that `init` or `fit` saw, weights counted, and lie in the params ("inputs",
    "likelihood"), so that new data are seen as the old ones were, and a fit from given params keeps their coordinates.

    Where all of q sits on the prior, the decoder ignores z (posterior collapse); `active_units` and `kl_per_dimension`
    of the model show it, and a `beta` that grows over the first passes is the usual remedy. A learned noise scale makes
    the likelihood of a density unbounded: see `jaxem.likelihoods.Gaussian` for its floor.

    Args:
      encoder: a network (see `jaxem.networks.Network`): from data to 2 Q columns, means and log-variances of q; or to a
        pair (mean, log-variance) of (n, Q); or to a distribution of Q latents, distrax's or any pytree with sample and
        log_prob. `jaxem.networks.PerDatum` is the model without amortisation.
      decoder: a network from z (n, Q) to the outputs that the likelihood names, or to a distribution of x.
      prior: None for N(0, I), or a mixture such as `GMM(10, "diag")`, whose params are learned with the rest.
      latent_dim: Q.
      likelihood: one of `jaxem.likelihoods`: Bernoulli(), Binomial(n), Poisson(), Categorical(levels),
        Gaussian(scale); None where the decoder returns a distribution.
      estimator: of the gradient; None for `SGVBB()`, and for `SGVBA()` with a mixture prior, whose KL is not closed.
        `IWAE(L)` trains and reports the importance-weighted bound.
      beta: weight of the KL in training (Higgins et al. 2017), a number >= 0 or an array over passes, whose last entry
        goes on: `jnp.minimum(1, jnp.arange(20) / 20)` is a warm-up. Reports are always at beta = 1. It is not the
        temperature of annealed EM, whose q is another one. 0 counts as 1e-6.
      num_refinements: gradient steps on q's means and log-variances after the encoder, differentiated through, in
        training and use (semi-amortised inference, Kim et al. 2018); each costs about as much as the rest of a step.
      refinement_rate: their step size.
      num_score_samples: evaluations of the estimator behind each reported ELBO, by which restarts and early stopping
        choose; with few rows one is so noisy that it may lie above log p(x). `model.elbo` is there for a precise one.
      standardise: "columns": by each column's own mean and deviation. "table": one deviation for all columns, their
        root mean square, for columns of one unit: `Gaussian("shared")` then is one noise scale in that unit, and a
        linear VAE the PPCA of the covariances, with "columns" that of the correlations. None: networks see and say
        the data in their own units, as an encoder that looks up integers in a table needs, or one that scales by
        itself. Never standardised: binary columns and codes (`Bernoulli`, `Categorical`) as the encoder sees them,
        `more`, and what a decoder's own distribution says. The encoder of `Poisson` sees standardised square roots.

    Settings, data and shapes are checked by `fit`, before anything is compiled.

    Raises:
      TypeError: encoder or decoder is no network, or likelihood, estimator or prior none.

    Examples:
      >>> import jax, jaxem
      >>> from jaxem.networks import mlp
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (64, 5)).astype(float)
      >>> model = VAE(mlp(8, 4), mlp(8, 5), latent_dim=2)
      >>> params = model.init(jax.random.key(1), x, None)
      >>> model.encode(params, x).mean().shape, model.reconstruct(params, x).shape
      ((64, 2), (64, 5))
      >>> model.evidence(params, x, key=jax.random.key(2), num_samples=50).log_prob.shape
      (64,)

    References:
      Kingma and Welling (2014), Auto-encoding variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
      backpropagation and approximate inference in deep generative models.
    """

    __repr__ = VariationalAutoencoder.__repr__

    @constructor
    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        prior: Mixture | None = None,
        *,
        latent_dim: int,
        likelihood: Likelihood | None = BERNOULLI,
        estimator: Estimator | None = None,
        beta: float | Array = 1.0,
        num_refinements: int = 0,
        refinement_rate: float | Array = 0.1,
        num_score_samples: int = 1,
        standardise: str | None = "columns",
    ) -> None:
        if estimator is None:
            estimator = SGVBB() if prior is None else SGVBA()
        super().__init__(
            as_network(encoder, "encoder"),
            as_network(decoder, "decoder"),
            FromDecoder() if likelihood is None else likelihood,
            estimator,
            prior,
            beta,
            refinement_rate,
            latent_dim,
            num_refinements,
            num_score_samples,
            standardise,
        )
        checks.check_parts(self)
