"""scikit-learn's pipelines and searches with jaxem's estimators: change one import.

Run:      python examples/sklearn_pipeline.py [--output DIR] [--toy]
Prints:   the mixture of the highest held-out log-likelihood and how its starts ended; whether it answers alike once
          read back from a file; K-means from one start against scikit-learn's of 50; what weights count.
Writes:   search.joblib in DIR.

The grid over the number and the shape of components runs in threads, which share compiled programs.
"""

import argparse
import pathlib
import time

import joblib
import numpy as np
import sklearn.cluster
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxem.sklearn import GaussianMixture, KMeans


def search(x: np.ndarray, components: list[int], covariances: list[str], starts: int) -> GridSearchCV:
    """A grid search by held-out log-likelihood, four candidates at a time."""
    mixture = GaussianMixture(n_init=starts, max_iter=500, random_state=0)
    pipe = make_pipeline(StandardScaler(), mixture)
    grid = {"gaussianmixture__n_components": components, "gaussianmixture__covariance_type": covariances}
    with joblib.parallel_config("threading"):  # processes would each compile their own programs
        return GridSearchCV(pipe, grid, n_jobs=4, cv=KFold(3, shuffle=True, random_state=0)).fit(x)


def main() -> None:
    """Fits and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output", help="folder of the file")
    parser.add_argument("--toy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    x = load_wine().data

    began = time.perf_counter()
    found = search(x, [1, 3] if args.toy else [1, 2, 3, 4], ["diag"] if args.toy else ["full", "diag"], 4)
    best = found.best_estimator_
    print(f"held-out log-likelihood {found.best_score_:.2f} nats a row by {found.best_params_}")
    print(f"the fates of its starts: {best[-1].statuses_}; {time.perf_counter() - began:.0f} s")

    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    joblib.dump(found, output / "search.joblib")
    again = joblib.load(output / "search.joblib")
    print(f"read back, it answers alike: {np.array_equal(again.predict(x), found.predict(x))}")

    kmeans = make_pipeline(StandardScaler(), KMeans(6, random_state=0)).fit(x)
    theirs = sklearn.cluster.KMeans(6, n_init=50, random_state=0).fit(StandardScaler().fit_transform(x))
    print(f"six clusters: inertia {kmeans[-1].inertia_:.3f} from one start, scikit-learn's of 50 {theirs.inertia_:.3f}")

    twice = GaussianMixture(2, covariance_type="diag", random_state=0).fit(x, sample_weight=np.full(len(x), 2.0))
    print(f"weights are counts: {twice.fit_.total_weight:.0f} observations in {int(twice.fit_.num_rows)} rows")


if __name__ == "__main__":
    main()
