"""scikit-learn's checks of estimators, on each of ours with the settings of its own suite."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxem.sklearn import BayesianGaussianMixture, GaussianMixture, KMeans, LatentClass, MiniBatchKMeans, MixtureModel

ESTIMATORS = [
    GaussianMixture(n_init=2, max_iter=5),
    BayesianGaussianMixture(n_init=2, max_iter=5),
    KMeans(n_init=2, n_clusters=2, max_iter=5),
    MiniBatchKMeans(n_init=2, n_clusters=2, max_iter=5, batch_size=10),
    MixtureModel(n_init=2, max_iter=5),
    LatentClass(n_init=2, max_iter=5),
]


@parametrize_with_checks(ESTIMATORS)
def test_estimator(estimator, check):
    check(estimator)
