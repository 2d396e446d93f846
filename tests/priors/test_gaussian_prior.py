"""The normal-inverse-Wishart prior of the Gaussian family, as pseudo-statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
from scipy import stats

import jaxem
from jaxem import Status
from jaxem.families import Gaussian
from jaxem.families.covariance import SHAPES
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
PLACES = np.array([[1.0, 7.0], [0.0, 0.0], [6.0, 1.0]])


def prior(shape="full", nu=4.0, kappa=2.5, centre=None, variance=None):
    return Gaussian(shape, nu, kappa, centre, variance)


def test_contract(blobs):
    model = jaxem.GMM(
        3,
        "diag",
        pseudo_observations=4.0,
        mean_pseudo_observations=2.0,
        pseudo_mean=PLACES,
        pseudo_covariance=np.array([1.0, 0.5]),
    )
    assert check_model(model, blobs, key=KEY, num_starts=2) == list(CHECKS)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mode_of_one_component_in_closed_form(blobs, shape):
    centre, variance, weights = np.array([10.0, -4.0]), np.array([3.0, 0.7]), np.linspace(0.5, 2, 120)
    nu, kappa, total = 4.0, 2.5, weights.sum()
    model = jaxem.Mixture(prior(shape, nu, kappa, centre, variance), 1)
    fit = jaxem.fit(model, blobs, key=KEY, weights=weights, stop=jaxem.Stop(1e-14))
    xbar = weights @ blobs / total
    gap, off = blobs - xbar, xbar - centre
    scatter = (gap.T * weights) @ gap + total * kappa / (total + kappa) * np.outer(off, off)
    if shape in ("full", "tied"):
        expected = (scatter + nu * np.diag(variance)) / (total + kappa + nu)
    elif shape == "diag":
        expected = np.diag((np.diag(scatter) + nu * variance) / (total + kappa + nu))
    else:
        expected = np.eye(2) * (np.trace(scatter) + nu * variance.sum()) / (2 * (total + kappa + nu))
    np.testing.assert_allclose(
        fit.params.components.mean[0], (total * xbar + kappa * centre) / (total + kappa), rtol=1e-10
    )
    np.testing.assert_allclose(fit.params.components.covariance[0], expected, rtol=1e-10, atol=1e-12)
    assert fit.status == Status.CONVERGED


def test_it_is_the_normal_inverse_wishart_density(blobs):
    """Up to a constant: differences between two params, in the mapping of the docstring."""
    nu, kappa, dim, variance = 5.0, 2.5, 2, np.array([3.0, 0.7])
    family = compiled(prior("full", nu, kappa, PLACES, variance).bind, jnp.asarray(blobs), jnp.ones(120))
    freedom = nu + kappa - dim - 2

    def log_density(mean, covariance):
        return sum(
            stats.invwishart.logpdf(c, freedom, nu * np.diag(variance))
            + stats.multivariate_normal.logpdf(m, p, c / kappa)
            for m, c, p in zip(mean, covariance, PLACES, strict=True)
        )

    rng = np.random.default_rng(0)
    values = []
    for _ in range(2):
        a, mean = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2))
        covariance = a @ a.transpose(0, 2, 1) + np.eye(2)
        params = family.make_params(mean=mean, covariance=covariance)
        values.append((float(family.elbo_params(params)), log_density(mean, covariance)))
    assert values[0][0] - values[1][0] == pytest.approx(values[0][1] - values[1][1], rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_penalised_objective_never_falls(blobs, shape):
    model = jaxem.Mixture(prior(shape, centre=np.array([3.0, 3.0])), 3)
    fit = jaxem.fit(model, blobs, key=KEY, num_restarts=4, max_steps=60)
    assert "DECREASED" not in fit.restarts.counts()
    rises = np.diff(np.asarray(fit.restarts.trace), axis=1)
    assert (rises[np.isfinite(rises)] > -1e-9).all()
    bound, total = fit.model, lambda params: fit.model.log_prob(params, blobs).sum() + fit.model.elbo_params(params)
    assert float(total(fit.params)) == pytest.approx(float(fit.elbo.total), rel=1e-12)
    assert float(bound.elbo_params(fit.params)) == pytest.approx(float(fit.elbo.params), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_strength_is_no_prior_to_the_bit(blobs, shape):
    x, resp = jnp.asarray(blobs), jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), 120))
    steps = []
    for family in (Gaussian(shape), prior(shape, 1e-6, 0.0, PLACES)):
        bound = compiled(family.bind, x, jnp.ones(120))
        new = bound.m_step(bound.start(3), bound.statistics(bound.start(3), x, resp))
        steps.append((new, bound.elbo_params(new)))
    jax.tree.map(np.testing.assert_array_equal, *steps)
    num = 10 if shape in ("full", "tied") else 7
    plain = compiled(Gaussian(shape).bind, x, jnp.ones(120))
    assert len(jax.tree.leaves(plain)) == num  # no prior leaves nothing in the program


def test_places_lead_the_start_and_keep_the_order(blobs):
    for order in ([0, 1, 2], [2, 0, 1]):
        model = jaxem.GMM(3, mean_pseudo_observations=1.0, pseudo_mean=PLACES[order])
        fit = jaxem.fit(model, blobs, key=KEY)
        np.testing.assert_allclose(fit.params.components.mean, PLACES[order], atol=0.6)
        again = float(fit.model.elbo_params(fit.params))
        assert again == pytest.approx(float(fit.elbo.params), rel=1e-9)  # labels and priors still belong together


def test_starts_differ_by_key(blobs):
    model = jaxem.GMM(3, mean_pseudo_observations=1.0, pseudo_mean=PLACES * 0.5 + 1.5)
    ends = [jaxem.fit(model, blobs, key=jax.random.key(i), max_steps=0).elbo.total for i in range(3)]
    assert len({float(end) for end in ends}) > 1


def test_an_empty_component_goes_to_the_mode_of_its_prior(blobs):
    x = jnp.asarray(blobs)
    family = compiled(prior("full", 4.0, 2.0, PLACES, np.array([1.0, 0.5])).bind, x, jnp.ones(120))
    resp, start = np.eye(3)[np.zeros(120, int)], family.start(3)
    new = compiled(family.m_step, start, compiled(family.statistics, start, x, resp))
    np.testing.assert_allclose(new.mean[1:], PLACES[1:], atol=1e-10)
    np.testing.assert_allclose(new.covariance[1], np.diag([1.0, 0.5]) * 4 / 6, atol=1e-10)


def test_a_prior_that_is_information_is_no_spike_and_one_that_asks_for_spikes_is(blobs):
    strong = jaxem.fit(jaxem.Mixture(prior("full", 50.0, 1.0), 3), blobs, key=KEY, num_restarts=4)
    assert strong.status == Status.CONVERGED
    far = np.array([[0.0, 0.0], [6.0, 1.0], [500.0, 500.0]])
    empty = jaxem.fit(jaxem.Mixture(prior("full", 1e-6, 1.0, far), 3), blobs, key=KEY)
    assert empty.status == Status.DEGENERATE


def test_a_constant_column_stays_held(blobs):
    x = np.column_stack([blobs, np.full(120, 5.0)])
    fit = jaxem.fit(jaxem.Mixture(prior("full"), 2), x, key=KEY)
    assert np.isfinite(fit.elbo.total)
    np.testing.assert_allclose(fit.params.components.covariance[:, 2, 2], 1)
    np.testing.assert_allclose(fit.params.components.mean[:, 2], 5)


@pytest.mark.parametrize(
    ("family", "error", "message"),
    [
        (prior(kappa=-1.0), ValueError, "mean_pseudo_observations: expected a finite number >= 0"),
        (prior(centre=np.ones(3)), ValueError, r"pseudo_mean: expected shape \(2,\) or \(K, 2\); found \(3,\)"),
        (prior(centre=np.ones((2, 2))), ValueError, "pseudo_mean: expected 3 rows, one for each component; found"),
        (prior(centre=[0.0, 1.0]), TypeError, "pseudo_mean: expected an array; found a list"),
        (prior(kappa=None, centre=np.ones(2)), ValueError, "pseudo_mean: expected mean_pseudo_observations"),
        (prior(variance=np.array([1.0, 0.0])), ValueError, "pseudo_covariance: expected finite numbers > 0"),
        (prior(variance=np.eye(2)), ValueError, r"pseudo_covariance: expected shape \(2,\); found \(2, 2\)"),
    ],
)
def test_bad_priors_are_named(blobs, family, error, message):
    with pytest.raises(error, match=message):
        jaxem.fit(jaxem.Mixture(family, 3), blobs, key=KEY)
