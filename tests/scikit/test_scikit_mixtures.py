"""`GaussianMixture` and `BayesianGaussianMixture` beside scikit-learn's own."""

import pickle
import warnings

import jax
import numpy as np
import pytest
import sklearn.mixture
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import jaxem
from jaxem.sklearn import BayesianGaussianMixture, GaussianMixture

KINDS = ("full", "tied", "diag", "spherical")
TIGHT = dict(n_components=3, tol=1e-9, max_iter=2000, random_state=0)


@pytest.fixture(scope="module")
def X(iris):  # noqa: N802
    return iris


@pytest.fixture(scope="module")
def fits(X):
    """A mixture of each type, to convergence from eight starts."""
    return {kind: GaussianMixture(covariance_type=kind, n_init=8, **TIGHT).fit(X) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_from_its_solution_theirs_does_not_move(fits, X, kind):
    ours = fits[kind]
    start = dict(weights_init=ours.weights_, means_init=ours.means_, precisions_init=ours.precisions_)
    theirs = sklearn.mixture.GaussianMixture(covariance_type=kind, **{**TIGHT, **start}).fit(X)
    np.testing.assert_allclose(theirs.means_, ours.means_, rtol=1e-3)
    for name in ("covariances_", "precisions_", "precisions_cholesky_"):
        assert getattr(theirs, name).shape == getattr(ours, name).shape
    np.testing.assert_allclose(theirs.covariances_, ours.covariances_, rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(theirs.lower_bound_, ours.lower_bound_, atol=1e-5)
    assert theirs.bic(X) == pytest.approx(ours.bic(X), abs=2e-3)
    assert theirs.aic(X) == pytest.approx(ours.aic(X), abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_go_by_the_attributes(fits, X, kind):
    """Theirs and ours at the same attributes answer alike, also where nothing was fitted."""
    theirs = sklearn.mixture.GaussianMixture(3, covariance_type=kind, random_state=0, max_iter=5, tol=1e-1).fit(X)
    ours = GaussianMixture(3, covariance_type=kind)
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        setattr(ours, name, getattr(theirs, name))
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-10)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-10)
    assert (ours.predict(X) == theirs.predict(X)).all()
    moved = clone(fits[kind]).set_params(max_iter=0).fit(X)
    before = moved.score(X)
    moved.means_ = moved.means_ + 1
    assert moved.score(X) < before - 0.1


def test_published_optimum_of_iris(fits):
    assert fits["full"].lower_bound_ * 150 == pytest.approx(-180.1855, abs=1e-3)
    assert fits["full"].statuses_ == {"CONVERGED": 8}


def test_bounds_are_of_the_params_returned(fits, X):
    ours = fits["full"]
    assert ours.converged_
    assert len(ours.lower_bounds_) == ours.n_iter_
    assert ours.lower_bound_ == pytest.approx(ours.score(X), abs=1e-12)
    assert ours.lower_bounds_[-1] == pytest.approx(ours.lower_bound_, abs=1e-4)  # the penalty
    assert np.all(np.diff(ours.lower_bounds_) > -1e-12)


def test_dtypes_follow_the_data(fits, X):
    assert not jax.config.jax_enable_x64
    ours = fits["full"]
    assert ours.means_.dtype == ours.score_samples(X).dtype == ours.predict_proba(X).dtype == np.float64
    single = GaussianMixture(n_init=8, n_components=3, random_state=0, max_iter=500).fit(X.astype(np.float32))
    assert single.means_.dtype == single.covariances_.dtype == single.predict_proba(X[:5]).dtype == np.float32
    assert single.lower_bound_ == pytest.approx(ours.lower_bound_, abs=1e-2)
    leaves = jax.tree.leaves(ours.fit_.params)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in leaves)


def test_weights_are_rows(X):
    count = np.random.default_rng(0).integers(0, 4, len(X))
    settings = dict(covariance_type="diag", n_init=8, **TIGHT)
    weighted = GaussianMixture(**settings).fit(X, sample_weight=count)
    repeated = GaussianMixture(**settings).fit(np.repeat(X, count, 0))
    np.testing.assert_allclose(weighted.score_samples(X), repeated.score_samples(X), atol=1e-4)
    assert weighted.score(X, sample_weight=count) == pytest.approx(repeated.score(np.repeat(X, count, 0)), abs=1e-6)
    with pytest.raises(ValueError, match="Negative values"):
        GaussianMixture().fit(X, sample_weight=-np.ones(len(X)))


@pytest.mark.parametrize("power", [-40, 40])
def test_units_of_the_data_do_not_matter(fits, X, power):
    ours = GaussianMixture(n_init=8, **TIGHT).fit(X * 2.0**power)
    np.testing.assert_allclose(ours.means_ * 2.0**-power, fits["full"].means_, rtol=1e-9)


def test_padding_changes_nothing(X):
    """100 rows are padded to 128: the same as the library's own fit of those 100."""
    with jax.enable_x64(True):
        model = jaxem.GMM(2, pseudo_observations=1e-6 * 100 / 2)
        own = jaxem.fit(model, X[:100], key=jax.random.key(5), stop=jaxem.Stop(atol=1e-9), max_steps=500)
    ours = GaussianMixture(2, tol=1e-9, max_iter=500, random_state=_Fixed(5)).fit(X[:100])
    np.testing.assert_allclose(ours.means_, own.params.components.mean, rtol=1e-8)
    assert ours.fit_.num_rows == 100


class _Fixed(np.random.RandomState):
    """A random state that draws the number it was made with."""

    def __init__(self, number):
        super().__init__(0)
        self.number = number

    def randint(self, *args, **kwargs):
        return self.number


def test_an_honest_start_beats_a_spike(X):
    """Of five components on iris half of the starts collapse, to values that no honest one has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = GaussianMixture(5, n_init=16, init_params="random_from_data", random_state=0, max_iter=1000).fit(X)
    assert ours.statuses_["DEGENERATE"] > 0
    assert ours.fit_.health.influence < 0.1
    assert ours.fit_.restarts.elbo.total.max() > ours.fit_.elbo.total + 10


def test_a_collapse_warns_and_names_the_remedy(X):
    with pytest.warns(ConvergenceWarning, match="larger reg_covar") as caught:
        GaussianMixture(2, random_state=0).fit(np.repeat(X[[0, 100]], 5, 0))
    assert caught[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        GaussianMixture(3, max_iter=1, tol=0, random_state=0).fit(X)
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        GaussianMixture(2, reg_covar=0, random_state=0).fit(np.repeat(X[[0, 100]], 5, 0))


def test_what_was_fitted_outlives_a_fit_that_fails(X):
    ours = GaussianMixture(2, covariance_type="diag", random_state=0).fit(X)
    before = ours.score_samples(X)
    with pytest.raises(ValueError, match="ill-defined"):
        ours.set_params(reg_covar=0).fit(np.repeat(X[[0, 100]], 5, 0))
    np.testing.assert_array_equal(ours.score_samples(X), before)


def test_given_means_take_the_rows_near_them(fits, X):
    ours = GaussianMixture(3, means_init=fits["full"].means_[::-1], max_iter=0).fit(X)
    np.testing.assert_allclose(ours.means_, fits["full"].means_[::-1])
    assert ours.predict(X[:1]) == 2 - fits["full"].predict(X[:1])
    assert ours.n_iter_ == 0
    assert ours.lower_bounds_ == []


def test_given_parts_stand_in_every_start(X):
    given = [0.5, 0.3, 0.2]
    ours = GaussianMixture(3, weights_init=given, n_init=4, max_iter=0, random_state=0).fit(X)
    np.testing.assert_allclose(ours.weights_, given)
    assert ours.fit_.restarts.status.shape == (4,)
    assert len(set(ours.fit_.restarts.elbo.total.tolist())) > 1


def test_warm_start_goes_on(X):
    ours = GaussianMixture(3, max_iter=2, warm_start=True, random_state=0)
    with pytest.warns(ConvergenceWarning):
        first = ours.fit(X).lower_bound_
    with pytest.warns(ConvergenceWarning):
        second = ours.fit(X).lower_bound_
    straight = GaussianMixture(3, max_iter=4, random_state=0)
    with pytest.warns(ConvergenceWarning):
        straight.fit(X)
    assert first < second == pytest.approx(straight.lower_bound_, abs=1e-9)


def test_pickles_answer_alike(fits, X):
    again = pickle.loads(pickle.dumps(fits["full"]))
    assert np.array_equal(again.predict_proba(X), fits["full"].predict_proba(X))
    assert np.array_equal(again.score_samples(X), fits["full"].score_samples(X))


def test_samples_have_the_moments(fits):
    rows, component = fits["full"].set_params(random_state=1).sample(4000)
    assert (np.diff(component) >= 0).all()
    np.testing.assert_allclose(np.bincount(component) / 4000, fits["full"].weights_, atol=0.03)
    np.testing.assert_allclose(rows.mean(0), fits["full"].weights_ @ fits["full"].means_, atol=0.15)
    assert np.array_equal(rows, fits["full"].sample(4000)[0])


def test_constant_columns_are_drawn_constant(X):
    ours = GaussianMixture(2, random_state=0).fit(np.c_[X, np.ones(len(X))])
    assert (ours.sample(20)[0][:, 4] == 1).all()
    assert np.isfinite(ours.precisions_).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bayesian_bound_is_below_the_likelihood_of_its_means(X, kind):
    settings = dict(covariance_type=kind, weight_concentration_prior_type="dirichlet_distribution", max_iter=500)
    ours = BayesianGaussianMixture(n_components=3, n_init=2, random_state=0, **settings).fit(X)
    theirs = sklearn.mixture.BayesianGaussianMixture(n_components=3, n_init=2, random_state=0, **settings).fit(X)
    for name in ("mean_precision_prior_", "mean_prior_", "degrees_of_freedom_prior_", "covariance_prior_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in ("weight_concentration_", "mean_precision_", "degrees_of_freedom_", "covariances_"):
        assert np.shape(getattr(ours, name)) == np.shape(getattr(theirs, name)), name
    assert ours.lower_bound_ < 150 * ours.score(X)  # log p(X) <= the sum of predictive densities given X
    assert np.all(np.diff(ours.lower_bounds_) > -1e-9)
    assert ours.weights_.sum() == pytest.approx(1)


def test_full_covariances_end_where_theirs_do(X):
    """From their own responsibilities, of which the posterior is the same."""
    settings = dict(n_components=2, tol=1e-10, max_iter=2000, random_state=0, reg_covar=1e-12)
    settings["weight_concentration_prior_type"] = "dirichlet_distribution"
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings).fit(X)
    ours = BayesianGaussianMixture(n_init=4, **settings).fit(X)
    order = np.argsort(theirs.weights_)[::-1]
    np.testing.assert_allclose(ours.means_, theirs.means_[order], rtol=1e-4)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_[order], rtol=1e-3)
    np.testing.assert_allclose(ours.degrees_of_freedom_, theirs.degrees_of_freedom_[order], rtol=1e-4)


def test_changed_posteriors_are_asked(X):
    ours = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=50).fit(X)
    before = ours.score_samples(X)
    ours.means_ = ours.means_.copy()
    np.testing.assert_array_equal(ours.score_samples(X), before)
    ours.means_ = ours.means_ + 1
    assert ours.score(X) < before.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rows_of_the_default_priors(X, kind):
    count = np.random.default_rng(0).integers(0, 4, len(X))
    far = np.r_[X, np.full((2, 4), 1e6)]  # absent
    settings = dict(n_components=2, covariance_type=kind, random_state=0, max_iter=300)
    weighted = BayesianGaussianMixture(**settings).fit(far, sample_weight=np.r_[count, 0, 0])
    repeated = BayesianGaussianMixture(**settings).fit(np.repeat(X, count, 0))
    for name in ("mean_prior_", "covariance_prior_"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(weighted.lower_bound_, repeated.lower_bound_, rtol=1e-3)


def test_draws_go_by_the_weights_set(X):
    ours = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=50).fit(X)
    ours.weights_ = np.array([0.0, 1.0])
    assert (ours.sample(50)[1] == 1).all()


def test_attributes_may_be_integers(fits, X):
    ours = clone(fits["full"]).set_params(max_iter=0).fit(X)
    ours.means_ = np.array([[5, 3, 1, 0], [6, 3, 4, 1], [6, 3, 5, 2]])
    whole = ours.score_samples(X)
    ours.means_ = ours.means_.astype(float)
    np.testing.assert_array_equal(whole, ours.score_samples(X))


@pytest.mark.parametrize("other", [dict(n_components=2), dict(covariance_type="diag"), {}])
def test_a_warm_start_of_another_model_is_refused(fits, X, other):
    ours = clone(fits["full"]).set_params(max_iter=0, warm_start=True).fit(X)
    with pytest.raises(ValueError, match="warm_start=True goes on from the last fit: expected its number"):
        ours.set_params(**other).fit(X if other else X[:, :3])


def test_fits_answer_quietly_without_x64(fits, X):
    bayesian = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits["full"].fit_.to_frame()
        bayesian.fit(X).fit_.to_frame()
        bayesian.set_params(weight_concentration_prior_type="dirichlet_distribution").fit(X).fit_.to_frame()
