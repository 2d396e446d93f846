import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxem
from jaxem import plot
from jaxem.networks import mlp


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).binomial(1, 0.4, (20, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def fit(x):
    return jaxem.fit(jaxem.VAE(mlp(6), mlp(6), latent_dim=3), x, key=jax.random.key(0), max_steps=2)


def canvas(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def test_images_lie_in_a_grid_in_their_order():
    pixels = np.arange(30.0).reshape(5, 6)
    found = canvas(plot.images(pixels, shape=(2, 3), num_columns=3))
    assert found.shape == (7, 13)  # two rows of three, with lines between
    for n in range(5):
        top, left = 1 + 3 * (n // 3), 1 + 4 * (n % 3)
        np.testing.assert_array_equal(found[top : top + 2, left : left + 3], pixels[n].reshape(2, 3))
    assert np.isnan(found[4:6, 9:12]).all()  # blank


def test_reconstructions_are_below_the_data(fit, x):
    found = canvas(plot.reconstructions(fit, x, shape=(3, 2), num=4))
    np.testing.assert_allclose(found[1:4, 1:3], x[0].reshape(3, 2))
    expected = fit.model.reconstruct(fit.params, x[3:4]).reshape(3, 2)
    np.testing.assert_allclose(found[5:8, 10:12], expected, rtol=1e-5)


def test_traversals_move_one_latent_at_a_time(fit, x):
    found = canvas(plot.traversals(fit, shape=(3, 2), latents=(2, 0), reach=1.5, num=3))
    z = np.zeros((1, 3))
    z[0, 2] = -1.5
    np.testing.assert_allclose(found[1:4, 1:3], fit.model.decode(fit.params, z).reshape(3, 2), rtol=1e-5)
    centre = fit.model.decode(fit.params, np.zeros((1, 3))).reshape(3, 2)
    for top in (1, 5):
        np.testing.assert_allclose(found[top : top + 3, 4:6], centre, rtol=1e-5)
    from_datum = canvas(plot.traversals(fit, shape=(3, 2), data=x[0], num=3))
    assert from_datum.shape == (13, 10)
    assert not np.allclose(from_datum[1:4, 4:6], centre)


def test_codes_take_the_colour_of_their_label(fit, x):
    labels = np.arange(20) % 3
    ax = plot.latent_space(fit, x, labels=labels, columns=(2, 0))
    codes = np.asarray(fit.model.encode(fit.params, x).mean())
    for k, points in enumerate(ax.collections):
        np.testing.assert_allclose(points.get_offsets(), codes[labels == k][:, [2, 0]], rtol=1e-6)
        np.testing.assert_allclose(points.get_facecolors()[0, :3], plot.colours(3)[k])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent 2", "latent 0")
    assert plot.latent_space(fit, x, ax=plt.subplots()[1]).get_legend() is None


def test_what_does_not_suit_is_named(fit, x):
    with pytest.raises(ValueError, match=r"shape: expected \(height, width\) of 6 pixels; found \(2, 2\)"):
        plot.reconstructions(fit, x, shape=(2, 2))
    with pytest.raises(ValueError, match="latents: expected some of 0..2; found"):
        plot.traversals(fit, shape=(2, 3), latents=(3,))
    with pytest.raises(ValueError, match=r"labels: expected shape \(20,\); found \(2,\)"):
        plot.latent_space(fit, x, labels=[0, 1])
    with pytest.raises(ValueError, match="columns: expected two different ones"):
        plot.latent_space(fit, x, columns=(0, 3))
    with pytest.raises(ValueError, match=r"data: expected at least one row; found shape \(0, 6\)"):
        plot.reconstructions(fit, x[:0], shape=(2, 3))
    with pytest.raises(ValueError, match="num_columns: expected an integer >= 1; found 0"):
        plot.images(x, shape=(2, 3), num_columns=0)
    with pytest.raises(TypeError, match="fit: expected a fit of a VAE; found one of object"):
        plot.latent_space(dataclasses.replace(fit, model=object()), x)
    assert not plt.get_fignums(), "nothing is drawn before the checks"
