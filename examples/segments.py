"""Hard against soft assignment: 178 wines in three groups, and the wines of which a mixture is not sure.

Run:      python examples/segments.py [--output DIR] [--toy]
Prints:   a table of K-means clusters against mixture components, and the wines with the least certain membership.
Writes:   segments.png in DIR: both assignments of the same wines, in two of the 13 columns.
"""

import argparse
import dataclasses
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine

import jaxem
import jaxem.plot.mixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="4 starts instead of 64, for a quick look")
    args = parser.parse_args()
    plt.switch_backend("Agg")

    wine = load_wine()
    x = ((wine.data - wine.data.mean(0)) / wine.data.std(0)).astype(np.float32)
    restarts = 4 if args.toy else 64
    hard = jaxem.fit(jaxem.KMeans(3), x, key=jax.random.key(0), num_restarts=restarts)
    soft = jaxem.fit(jaxem.GMM(3, "diag"), x, key=jax.random.key(1), num_restarts=restarts)
    # Number the clusters as the components: each takes the centroid nearest to its mean.
    centroids, means = np.asarray(hard.params.centroids), np.asarray(soft.params.components.mean)
    order = np.argmin(np.sum((means[:, None] - centroids[None]) ** 2, -1), 1)
    hard = dataclasses.replace(hard, params=dataclasses.replace(hard.params, centroids=centroids[order]))
    print(f"{hard}\n{soft}\n")

    cluster = np.asarray(hard.model.predict(hard.params, x))
    resp = np.asarray(soft.model.posterior(soft.params, x))
    component = resp.argmax(1)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (cluster, component), 1)
    print("wines       " + "".join(f"component {k}  " for k in range(3)))
    for k, row in enumerate(counts):
        print(f"cluster {k}   " + "".join(f"{n:11d}  " for n in row))
    print(f"{np.trace(counts)} of {len(x)} wines are in the same group; soft membership says how sure of it:")
    print("wine   cluster   responsibilities        cultivar")
    for n in np.argsort(resp.max(1))[:8]:
        print(f"{n:4d}   {cluster[n]:7d}   ({', '.join(f'{r:.3f}' for r in resp[n])})   {wine.target[n]}")
    print(f"{np.sum(resp.max(1) < 0.99)} wines have no responsibility of 0.99 or more")

    args.output.mkdir(parents=True, exist_ok=True)
    columns = [wine.feature_names.index(name) for name in ("flavanoids", "color_intensity")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharex=True, sharey=True)
    for ax in axes:
        ax.set(xlabel="flavanoids (standardised)", ylabel="colour intensity (standardised)")
    jaxem.plot.components(hard, x, columns=columns, ax=axes[0]).set_title("hard: K-means")
    jaxem.plot.responsibilities(soft, x, columns=columns, ax=axes[1]).set_title("soft: mixture of Gaussians")
    figure.savefig(args.output / "segments.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
