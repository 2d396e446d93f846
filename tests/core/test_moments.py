"""Mergeable weighted moments."""

import numpy as np
import pytest

from jaxem.core.moments import moments


def exact(x, weights):
    x, weights = np.asarray(x, np.longdouble), np.asarray(weights, np.longdouble)
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    return mean, np.sqrt((weights[:, None] * (x - mean) ** 2).sum(0) / weights.sum())


@pytest.mark.parametrize("offset", [0.0, 1e8, -1e8])
@pytest.mark.parametrize("unit", [1.0, 2.0**-500, 2.0**500])
def test_moments_of_parts_add_up(offset, unit):
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=(60, 3)) + offset) * unit, rng.uniform(0.5, 2, 60)
    weights[[0, 7, 40]] = 0
    x[0] = 1e12 * unit
    whole, parts = moments(x, weights), moments(x[:20], weights[:20]) + moments(x[20:], weights[20:])
    mean, std = exact(x, weights)
    # Means of parts are rounded as the numbers are, and so is the distance between them.
    rounding = 4 * np.finfo(float).eps * (1 + abs(offset))
    for found, rtol in ((whole, 1e-14), (parts, max(1e-14, rounding))):
        np.testing.assert_allclose(found.total, weights.sum(), rtol=1e-14)
        np.testing.assert_allclose(found.rows, 57)
        np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-15, atol=1e-14 * unit)
        np.testing.assert_allclose(found.std, std.astype(float), rtol=rtol)
        np.testing.assert_array_equal(found.largest, abs(x[weights > 0]).max(0))
        assert not np.any(found.constant)


def test_columns_without_spread_are_known_in_parts_as_in_whole():
    x = np.full((9, 1), 1e8 / 3)
    one, two = moments(x[:4], np.ones(4)), moments(x[4:], np.ones(5))
    assert bool(one.constant[0])
    assert bool((one + two).constant[0])
    assert float((one + two).std[0]) == 0


def test_about_another_place():
    rng = np.random.default_rng(1)
    x, weights = rng.normal(3.0, 1.0, (50, 2)), rng.uniform(size=50)
    found = moments(x, weights).about(np.zeros(2))
    np.testing.assert_allclose(found.std, np.sqrt((weights[:, None] * x**2).sum(0) / weights.sum()), rtol=1e-14)
