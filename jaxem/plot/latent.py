"""Pictures of a VAE: its latent space, reconstructions beside the data, and walks along latents."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from jaxem.core.arguments import check_integer
from jaxem.engine.result import Fit
from jaxem.plot.style import check_fit, check_points, colours, fit_rows, new_axes


def _check_vae(fit: Any) -> None:
    check_fit(fit)
    if not hasattr(fit.model, "reconstruct"):
        raise TypeError(f"fit: expected a fit of a VAE; found one of {type(fit.model).__name__}")


def _check_image(shape: Any, columns: int) -> tuple[int, int]:
    """Height and width of an image of `columns` pixels."""
    if not isinstance(shape, Sequence) or len(shape) != 2 or int(shape[0]) * int(shape[1]) != columns:
        raise ValueError(f"shape: expected (height, width) of {columns} pixels; found {shape!r}")
    return int(shape[0]), int(shape[1])


def _grid(images: np.ndarray, limits: tuple[float, float], ax: Axes | None) -> Axes:
    """One picture of images (rows, columns, height, width) with lines between them."""
    rows, columns, height, width = images.shape
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for i in range(rows):
        for j in range(columns):
            top, left = 1 + i * (height + 1), 1 + j * (width + 1)
            canvas[top : top + height, left : left + width] = images[i, j]
    if ax is None:
        tall, wide = canvas.shape
        ax = plt.subplots(figsize=(8, 8 * tall / wide + 0.5), layout="constrained")[1]
    ax.imshow(canvas, cmap="gray_r", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_axis_off()
    return ax


def images(x: Any, *, shape: Sequence[int], num_columns: int = 12, ax: Axes | None = None) -> Axes:
    """Rows of pixels as images in a grid, such as draws from a model; one grey scale, dark for large values.

    Args:
      x: (N, D) pixels.
      shape: (height, width) with height * width = D.
      num_columns: images in a row; the last row is filled up with blanks.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: an argument that does not suit.

    Examples:
      >>> import matplotlib.pyplot as plt
      >>> ax = images(np.arange(24.0).reshape(4, 6), shape=(2, 3), num_columns=3)
      >>> plt.close(ax.figure)
    """
    x = np.asarray(x)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x: expected shape (N, D) with N >= 1; found {x.shape}")
    height, width = _check_image(shape, x.shape[1])
    check_integer("num_columns", num_columns, 1)
    rows, columns = -(-len(x) // num_columns), min(num_columns, len(x))
    grid = np.full((rows * columns, height, width), np.nan)
    grid[: len(x)] = x.reshape(-1, height, width)
    return _grid(grid.reshape(rows, columns, height, width), (float(x.min()), float(x.max())), ax)


def reconstructions(fit: Fit, data: Any, *, shape: Sequence[int], num: int = 12, ax: Axes | None = None) -> Axes:
    """Images above their reconstructions E[x | mean of q(z | x)], dark for large values.

    Both rows have one grey scale, from the least to the largest value of the data shown.

    Args:
      fit: a fit of a `jaxem.VAE` whose columns are pixels.
      data: (N, D); the first `num` rows are shown.
      shape: (height, width) with height * width = D.
      num: most images.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: fit is no `Fit` of a VAE.
      ValueError: a batch of fits, or data or shape that do not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> from jaxem.networks import mlp
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (20, 6)).astype(float)
      >>> model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)
      >>> ax = reconstructions(jaxem.fit(model, x, key=jax.random.key(1), max_steps=2), x, shape=(2, 3))
      >>> plt.close(ax.figure)
    """
    _check_vae(fit)
    x = fit_rows(fit, data)[:num]
    if x.ndim != 2:
        raise ValueError(f"data: expected shape (N, D); found {x.shape}")
    height, width = _check_image(shape, x.shape[1])
    found = np.asarray(fit.model.reconstruct(fit.params, x))
    images = np.stack([x, found]).reshape(2, len(x), height, width)
    ax = _grid(images, (float(x.min()), float(x.max())), ax)
    ax.set_title("data above, reconstructions below")
    return ax


def traversals(
    fit: Fit,
    *,
    shape: Sequence[int],
    data: Any = None,
    latents: Sequence[int] | None = None,
    reach: float = 2.5,
    num: int = 9,
    ax: Axes | None = None,
) -> Axes:
    """E[x | z] as one latent at a time goes from -reach to reach, a row for each; dark for large values.

    A latent that makes no difference carries nothing: its row is one image repeated.

    Args:
      fit: a fit of a `jaxem.VAE` whose columns are pixels.
      shape: (height, width) of an image.
      data: (1, D) or (D,) one datum whose mean code the walks start from; None for z = 0.
      latents: which, in what order; None for the first eight at most.
      reach: how far, in units of z (standard deviations of a standard normal prior).
      num: images in a row.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: fit is no `Fit` of a VAE.
      ValueError: a batch of fits, or another argument that does not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> from jaxem.networks import mlp
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (20, 6)).astype(float)
      >>> model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)
      >>> ax = traversals(jaxem.fit(model, x, key=jax.random.key(1), max_steps=2), shape=(2, 3))
      >>> plt.close(ax.figure)
    """
    _check_vae(fit)
    dim = fit.model.latent_dim
    latents = range(min(dim, 8)) if latents is None else latents
    if not len(latents) or not all(isinstance(q, (int, np.integer)) and 0 <= q < dim for q in latents):
        raise ValueError(f"latents: expected some of 0..{dim - 1}; found {latents!r}")
    start = np.zeros(dim)
    if data is not None:
        start = np.asarray(fit.model.encode(fit.params, np.atleast_2d(np.asarray(data))[:1]).mean())[0]
    z = np.tile(start, (len(latents), num, 1))
    for i, q in enumerate(latents):
        z[i, :, q] = np.linspace(-reach, reach, num)
    found = np.asarray(fit.model.decode(fit.params, z.reshape(-1, dim)))
    height, width = _check_image(shape, found.shape[1])
    images = found.reshape(len(latents), num, height, width)
    ax = _grid(images, (float(found.min()), float(found.max())), ax)
    ax.set_title(f"each row: one latent from -{reach:g} to {reach:g}; latents {', '.join(map(str, latents))}")
    return ax


def latent_space(
    fit: Fit, data: Any, *, labels: Any = None, columns: Sequence[int] = (0, 1), ax: Axes | None = None
) -> Axes:
    """Codes E[z | x] of the data in two latents, coloured by labels that the fit did not see.

    Args:
      fit: a fit of a `jaxem.VAE` with Q >= 2.
      data: N rows, as the fit's.
      labels: (N,) classes, or None.
      columns: two different latents.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: fit is no `Fit` of a VAE.
      ValueError: a batch of fits, or labels or columns that do not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> from jaxem.networks import mlp
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (20, 6)).astype(float)
      >>> model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)
      >>> ax = latent_space(jaxem.fit(model, x, key=jax.random.key(1), max_steps=2), x)
      >>> plt.close(ax.figure)
    """
    _check_vae(fit)
    codes, columns = check_points(fit.model.encode(fit.params, data).mean(), columns)
    labels = np.zeros(len(codes), int) if labels is None else np.asarray(labels)
    if labels.shape != (len(codes),):
        raise ValueError(f"labels: expected shape ({len(codes)},); found {labels.shape}")
    names, index = np.unique(labels, return_inverse=True)
    ax, palette = new_axes(ax), colours(len(names))
    for k, name in enumerate(names.tolist()):
        points = codes[index == k][:, columns]
        ax.scatter(points[:, 0], points[:, 1], s=12, color=palette[k], alpha=0.7, linewidths=0, label=str(name))
    if len(names) > 1:
        ax.legend(frameon=False, fontsize="small", ncols=1 + len(names) // 11, markerscale=1.6)
    if not ax.get_xlabel():
        ax.set_xlabel(f"latent {columns[0]}")
    if not ax.get_ylabel():
        ax.set_ylabel(f"latent {columns[1]}")
    ax.set_aspect("equal", adjustable="datalim")
    return ax
