"""What a VAE refuses before anything is compiled: settings, data outside the support, networks of other shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import check_integer, check_number, expect
from jaxem.core.inputs import check_enough
from jaxem.core.normal import DiagonalNormal
from jaxem.core.numerics import is_concrete
from jaxem.core.tree import PyTree, float_dtype
from jaxem.estimators import Estimator
from jaxem.likelihoods import FromDecoder, Likelihood
from jaxem.models.mixture import Mixture
from jaxem.models.vae.latents import observed

STANDARDISE = ("columns", "table", None)


def check_support(model: Any, data: PyTree) -> None:
    """Raises for data that the likelihood gives no probability; values only where they are no tracers."""
    x = observed(data)
    _check_likelihood(model.likelihood)
    if is_concrete(x):
        model.likelihood.validate(x)


def check_width(model: Any, data: PyTree, params: PyTree) -> None:
    """Raises ValueError for rows that the encoder cannot take at its params."""
    try:
        jax.eval_shape(model.encoder.apply, params["encoder"], data)
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(data))
        raise ValueError(f"data: expected rows that the encoder takes; found shape {shapes}: {error}") from None


def check(model: Any, data: PyTree) -> None:
    """Raises TypeError or ValueError, naming the argument, for settings, data or networks that do not suit."""
    check_integer("latent_dim", model.latent_dim, 1)
    check_integer("num_refinements", model.num_refinements, 0)
    check_integer("num_score_samples", model.num_score_samples, 1)
    check_parts(model)
    check_number("beta", model.beta, 0, dims=(0, 1), what="a number >= 0, or an array of them over passes")
    check_number("refinement_rate", model.refinement_rate, 0, what="a number >= 0")
    if model.standardise not in STANDARDISE:
        raise ValueError(f"standardise: expected 'columns', 'table' or None; found {model.standardise!r}")
    if model.prior is None:
        model.estimator.validate(jax.eval_shape(lambda: DiagonalNormal.standard(model.latent_dim)))
    else:
        model.estimator.validate(model.prior)
        draws = np.random.default_rng(0).normal(size=(1000, model.latent_dim))
        model.prior.check(draws)
        check_enough(model.prior, 1000, "prior, of 1000 draws")
    jax.eval_shape(_trace, model, data)


def check_parts(model: Any) -> None:
    """Raises TypeError for a likelihood, an estimator or a prior of another class."""
    _check_likelihood(model.likelihood)
    expect("estimator", model.estimator, Estimator, "an estimator, as jaxem.SGVBB()")
    if model.prior is not None:
        expect("prior", model.prior, Mixture, "None for N(0, I), or a Mixture, as jaxem.GMM(10)")


def _check_likelihood(likelihood: Any) -> None:
    expect("likelihood", likelihood, Likelihood, "one of jaxem.likelihoods, as jaxem.likelihoods.Bernoulli(), or None")


@jax.jit  # for its cache: a second fit does not trace again
def _trace(model: Any, data: PyTree) -> None:
    """Runs both networks' starts and outputs, and the objective, in shapes alone."""
    num, dim, dtype = jax.tree.leaves(data)[0].shape[0], model.latent_dim, float_dtype(data)
    key = jax.random.key(0)
    params = model.encoder.init(key, jax.tree.map(lambda a: a[:1], data))
    outputs = model.encoder.apply(params, data)
    _check_encoder(outputs, num, dim, model.num_refinements)
    z = jnp.zeros((num, dim), dtype)
    outputs = model.decoder.apply(model.decoder.init(key, z[:1]), z)
    _check_decoder(outputs, model.likelihood, num, observed(data).shape[1])
    if model.prior is None:  # the start of a mixture takes longer to trace
        weights = jnp.ones(num, dtype)
        model.training_elbo(model.init(key, data, weights), data, weights, key, jnp.zeros((), jnp.int32))


def _check_encoder(outputs: Any, num: int, dim: int, num_refinements: int) -> None:
    expected = f"({num}, {2 * dim}), means and log-variances of latent_dim = {dim}"
    if hasattr(outputs, "sample") and hasattr(outputs, "log_prob"):
        found = (*outputs.batch_shape, *outputs.event_shape)
        if found != (num, dim):
            raise ValueError(f"encoder: expected a distribution of ({num}, {dim}) latents; found one of {found}")
        if num_refinements and not isinstance(outputs, DiagonalNormal):
            raise TypeError(
                f"encoder: num_refinements needs means and log-variances, free real numbers; found a distribution, "
                f"{type(outputs).__name__}"
            )
        return
    if isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        shapes = [jnp.shape(a) for a in outputs]
        if shapes != [(num, dim)] * 2:
            raise ValueError(
                f"encoder: expected a pair of shapes ({num}, {dim}), mean and log-variance; found {shapes}"
            )
        return
    if not isinstance(outputs, Array):
        raise TypeError(f"encoder: expected outputs {expected}, or a distribution; found a {type(outputs).__name__}")
    if outputs.shape != (num, 2 * dim):
        raise ValueError(f"encoder: expected outputs of shape {expected}; found {outputs.shape}")


def _check_decoder(outputs: Any, likelihood: Likelihood, num: int, columns: int) -> None:
    is_distribution = hasattr(outputs, "sample") and hasattr(outputs, "log_prob")
    name = type(likelihood).__name__
    if isinstance(likelihood, FromDecoder):
        if not is_distribution:
            raise TypeError(
                f"decoder: expected a distribution, as likelihood is None; found a {type(outputs).__name__}"
            )
        return
    if is_distribution:
        raise TypeError(f"decoder: expected outputs for {name}; found a distribution: give likelihood=None")
    expected = (num, likelihood.num_outputs(columns))
    if not isinstance(outputs, Array):
        raise TypeError(f"decoder: expected outputs of shape {expected} for {name}; found a {type(outputs).__name__}")
    if outputs.shape != expected:
        raise ValueError(
            f"decoder: expected outputs of shape {expected}, for {columns} columns of {name}; found {outputs.shape}"
        )
