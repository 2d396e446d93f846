import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _single():
    """JAX as its users have it, with x64 off: the estimators turn it on for themselves."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)
