"""A photograph in 64 colours: K-means on its pixels, each pixel drawn in the colour of its centroid.

Run:      python examples/image_colours.py [--output DIR] [--toy]
Prints:   pixels, distortion, PSNR and mean error of a channel, the status of every restart, and the seconds taken.
Writes:   colours.png in DIR, the photograph beside its copy in 64 colours.
"""

import argparse
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import jaxem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--colours", type=int, default=64)
    parser.add_argument("--toy", action="store_true", help="one pixel in 256 and 8 colours, for a quick look")
    args = parser.parse_args()
    plt.switch_backend("Agg")

    photograph = load_sample_image("china.jpg")
    if args.toy:
        photograph, args.colours = photograph[::16, ::16], 8
    pixels = photograph.reshape(-1, 3).astype(np.float32)

    start = time.perf_counter()
    model = jaxem.KMeans(args.colours)
    fit = jax.block_until_ready(jaxem.fit(model, pixels, key=jax.random.key(0), num_restarts=4, max_steps=300))
    seconds = time.perf_counter() - start

    palette, label = np.asarray(fit.params.centroids), np.asarray(fit.predict(pixels))
    painted = np.clip(np.round(palette[label]), 0, 255).astype(np.uint8).reshape(photograph.shape)
    error = painted.astype(np.float64) - photograph
    psnr = 10 * np.log10(255**2 / np.mean(error**2))
    print(fit)
    print(f"pixels      {pixels.shape[0]}, colours {len(np.unique(pixels, axis=0))} -> {args.colours}")
    print(f"distortion  {float(fit.inertia(pixels)):.0f} (sum of squared differences)")
    print(f"quality     PSNR {psnr:.2f} dB, a channel is off by {np.abs(error).mean():.2f} of 255 on average")
    print(f"restarts    distortions {np.round(-2 * np.asarray(fit.restarts.elbo.data)).tolist()}")
    print(f"time        {seconds:.1f} s, compilation included")

    args.output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    titles = "original", f"{args.colours} colours, PSNR {psnr:.1f} dB"
    for ax, picture, title in zip(axes, (photograph, painted), titles, strict=True):
        ax.imshow(picture)
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(args.output / "colours.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
