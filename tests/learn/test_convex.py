"""Each K against its conjugate: Fenchel and Young's inequality, numeric suprema and projections by other means."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from kinema.errors import InputError
from kinema.learn.optim.convex import (
    ALL_CONVEX,
    L1,
    L2,
    Convex,
    GroupL2,
    Huber,
    L2Squared,
    Lp,
    Nuclear,
    PseudoHuber,
    ReluL1,
    TopK,
)

FAMILY = [L1(), Huber(0.5), PseudoHuber(0.5), ReluL1(0.5), TopK(3), L2Squared(), Lp(1.5), L2(), GroupL2(), Nuclear()]
FLAT = [k for k in FAMILY if k.least_ndim == 0]
NUMBERS = st.lists(st.floats(-4, 4).map(lambda x: round(x, 2)), min_size=6, max_size=6)


def named(k):
    return type(k).__name__


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def test_the_list_is_whole():
    assert {type(k) for k in FAMILY} == set(ALL_CONVEX)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("k", FAMILY, ids=named)
@settings(max_examples=8, deadline=None)
@given(m=NUMBERS, x=NUMBERS)
def test_fenchel_young(k, m, x):
    """K(m) + K*(x) >= <m, x> for x in the domain, with equality at x = ∇K(m), which is in it."""
    m, x = (jnp.array(one, float).reshape(2, 3) for one in (m, x))
    inside, slope = k.project(x), k.grad(m)
    assert k.value(m) + k.conjugate(inside) - jnp.sum(m * inside) >= -1e-9
    assert abs(k.value(m) + k.conjugate(slope) - jnp.sum(m * slope)) < 1e-9
    assert k.in_domain(inside, 1e-9) and k.in_domain(slope, 1e-9)
    assert jnp.isclose(k.distance(x), jnp.linalg.norm(x - inside), atol=1e-7)
    assert not jnp.any(k.grad(0 * m)) and jnp.allclose(k.grad(-m), -slope)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("k", FLAT, ids=named)
def test_conjugates_are_suprema(k):
    """max over m of <m, x> - K(m) by a simplex search, for an x well inside the domain."""
    x = 0.4 * jnp.array([0.9, -0.5])
    k = TopK(1) if isinstance(k, TopK) else k
    gain = jax.jit(lambda m: jnp.sum(m * x) - k.value(m))
    found = optimize.minimize(lambda m: -gain(m), [0.1, -0.1], method="Nelder-Mead", options={"xatol": 1e-9})
    assert np.isclose(-found.fun, k.conjugate(x), atol=1e-6)


@pytest.mark.usefixtures("double")
def test_projections_are_nearest(key):
    """<x - p, y - p> <= 0 for every y of the domain: gradients of K at random m, all its extreme points among them."""
    x = 2 * jr.normal(key, (3, 4))
    for k in (TopK(3), GroupL2(axis=0), Nuclear()):
        near = k.project(x)
        corners = jax.vmap(k.grad)(jr.normal(jr.key(1), (200, 3, 4)))
        assert jnp.max(jnp.sum((x - near) * (corners - near), (1, 2))) < 1e-9, named(k)
    far = jnp.linalg.svd(Nuclear().project(x), compute_uv=False)
    np.testing.assert_allclose(far, np.minimum(np.linalg.svd(x, compute_uv=False), 1), rtol=1e-12)
    tied = TopK(2).project(jnp.full(4, 3.0))
    np.testing.assert_allclose(tied, 0.5, rtol=1e-12)


def test_gradients_by_hand():
    m = jnp.array([3.0, -0.2, 0.0])
    np.testing.assert_allclose(L1().grad(m), [1, -1, 0])
    np.testing.assert_allclose(Huber(0.5).grad(m), [1, -0.4, 0])
    np.testing.assert_allclose(PseudoHuber(4.0).grad(m)[0], 0.6)
    np.testing.assert_allclose(ReluL1(0.5).grad(m), [1, 0, 0])
    np.testing.assert_allclose(TopK(2).grad(m), [1, -1, 0])
    np.testing.assert_allclose(Lp(3.0).grad(m), [9, -0.04, 0], rtol=1e-6)
    np.testing.assert_allclose(L2().grad(jnp.array([3e-30, 4e-30])), [0.6, 0.8], rtol=1e-6)
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(GroupL2().grad(rows), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(GroupL2(0).grad(rows), [[1, 1], [0, 0]], rtol=1e-6)
    assert L2().grad(jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16
    assert L1().value(jnp.ones(4096, jnp.bfloat16)) == 4096


def test_nuclear_gradients(key):
    """U Vᵀ on what has singular values; Newton-Schulz as optax has it; more axes as one matrix."""
    m = jr.normal(key, (6, 4)) @ jnp.diag(jnp.array([3.0, 1.0, 0.3, 0.0]))
    slope = Nuclear().grad(m)
    np.testing.assert_allclose(np.linalg.svd(slope, compute_uv=False), [1, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(Nuclear().grad(m.reshape(6, 2, 2)).reshape(6, 4), slope, atol=1e-6)
    for shape in ((6, 4), (4, 6)):
        drawn = jr.normal(key, shape)
        u, _, vt = np.linalg.svd(drawn, full_matrices=False)
        within = u.T @ np.asarray(Nuclear(steps=5).grad(drawn)) @ vt.T
        sizes = np.diag(within)
        assert np.abs(within - np.diag(sizes)).max() < 1e-3 and sizes.min() > 0.65 and sizes.max() < 1.25


class Bare(Convex):
    def value(self, m):
        return jnp.sum(jnp.abs(m))

    def grad(self, m):
        return jnp.sign(m)


def test_bad_input_is_refused():
    for make, message in [
        (lambda: Lp(1.0), "q > 1, got 1.0"),
        (lambda: Lp(float("nan")), "q > 1"),
        (lambda: Huber(0.0), "Huber needs e > 0, got 0.0"),
        (lambda: TopK(0), "k >= 1, got 0"),
        (lambda: Nuclear(0), "steps >= 1 or None, got 0"),
        (lambda: Bare().conjugate(jnp.ones(2)), "Bare has no conjugate"),
        (lambda: Bare().distance(jnp.ones(2)), "Bare has no projection"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
    assert "the leaf has 1" in Nuclear().unfit((3,)) and "needs that axis" in GroupL2(5).unfit((3, 3))
    assert "the leaf has 6" in TopK(7).unfit((2, 3)) and not TopK(6).unfit((2, 3))
