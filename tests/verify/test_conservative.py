"""Fields whose gradient part, gauge and asymmetry are known in closed form."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import VE, Linear, MixturePosterior, sample
from kinema.generate.solver import grids, heun
from kinema.verify import (
    Gauged,
    RandomFourier,
    asymmetry,
    gauge_error,
    gauge_field,
    project_conservative,
)

TURN = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
SIGMA = jnp.array([2.0, 0.3])  # variances of a normal law


def score(x):
    return -x / SIGMA


def test_asymmetry_of_linear_fields(key):
    matrix = jr.normal(key, (5, 5))
    truth = jnp.sum((matrix - matrix.T) ** 2) / (4 * jnp.sum(matrix**2))
    x = jr.normal(key, (200, 5))

    def field(y):
        return matrix @ y

    assert np.isclose(asymmetry(field, x, probes="exact"), truth, rtol=1e-5)
    assert np.isclose(asymmetry(field, x, key=key, probes=32), truth, rtol=0.1)
    exact = MixturePosterior(VE(), [[1.0, 0.0], [-1.0, 0.5]], 0.2)
    assert asymmetry(exact, x[:, :2], 0.7, key=key) < 1e-10


def quadratics(x):
    return jnp.array([x[0] ** 2, x[0] * x[1], x[1] ** 2])


def test_projection_in_a_normal_law_solves_the_lyapunov_equation(x64, key):
    """The gradient part of A x is B x with B symmetric and B S + S B = A S + S A^T."""
    matrix = jnp.array([[0.5, 1.0], [-0.4, -1.2]])
    x = jr.normal(key, (2000, 2)) * jnp.sqrt(SIGMA)
    x = (x - x.mean(0)) @ jnp.linalg.inv(jnp.linalg.cholesky(jnp.cov(x.T, bias=True))).T * jnp.sqrt(SIGMA)
    found = project_conservative(lambda y: matrix @ y, x, basis=quadratics)
    S = jnp.diag(SIGMA)
    right = matrix @ S + S @ matrix.T
    truth = right / (SIGMA[:, None] + SIGMA)
    np.testing.assert_allclose(jax.jacfwd(found)(jnp.ones(2)), truth, atol=1e-6)
    assert np.isclose(jax.grad(found.potential)(jnp.ones(2)) @ jnp.ones(2), truth.sum(), atol=1e-6)


def test_only_the_harmful_part_of_an_error_is_seen(key):
    """Three components on the plane: a large gauge is not seen, a small error of the gradient is."""
    law = MixturePosterior(Linear(), [[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], 0.34)
    key_draw, key_basis = jr.split(key)
    x = jax.vmap(law.draw)(jr.split(key_draw, 20_000))

    def exact(y):
        return jax.grad(lambda z: law.log_prob(1.0, z))(y)

    basis = RandomFourier(2, 128, key=key_basis)
    turned = gauge_field(exact, TURN)

    def wrong(y):
        return exact(y) + turned(y) + 0.5 * jnp.array([jnp.cos(y[0]), 0.0])

    gauge = gauge_error(lambda y: exact(y) + turned(y), x, basis=basis, score=exact)
    assert abs(gauge.harmful) < 0.02 and gauge.total > 3 and gauge.share < 0.01
    both = gauge_error(wrong, x, basis=basis, score=exact)
    truth = 0.25 * float(jnp.mean(jnp.cos(x[:, 0]) ** 2))
    assert abs(both.harmful - truth) < 0.03 < truth and both.total > 3


def test_a_gauge_changes_no_marginal_of_the_flow(key):
    """Covariance of samples of N(0, diag(2, .3)) with K s, K of norm 3, added to the score."""
    exact = MixturePosterior(VE(sigma_min=0.01, sigma_max=10.0), [[0.0, 0.0]], [[2.0, 0.3]])
    gauged = Gauged(exact, lambda t, x: 3 * TURN @ exact(t, x).score)
    path, n = exact.path, 20_000
    starts = jr.normal(key, (n, 2)) * jnp.sqrt(SIGMA + 100.0)
    plan = heun(path, grids.log_snr(path, 150, clean=False))
    found = sample(gauged, plan, n, key=key, shape=(2,), start=starts).x
    assert_within_error(found.var(0), SIGMA + 1e-4, standard_error=SIGMA * (2 / n) ** 0.5)
    assert_within_error((found[:, 0] * found[:, 1]).mean(), 0.0, standard_error=(2 * 0.3 / n) ** 0.5)
    plain = sample(exact, plan, n, key=key, shape=(2,), start=starts).x
    assert jnp.abs(found - plain).max() > 1  # each sample goes elsewhere


def test_a_gauge_of_variable_turn_has_no_weighted_divergence(x64):
    """div r + r . s = 0 at any point."""

    def turn(x):
        return jnp.sin(x[0] * x[1]) * TURN

    r = gauge_field(score, turn)
    x = jnp.array([0.4, -0.7])
    assert abs(jnp.trace(jax.jacfwd(r)(x)) + r(x) @ score(x)) < 1e-12 < jnp.linalg.norm(r(x))


def test_bad_input(key):
    x = jnp.ones((10, 2))
    with pytest.raises(InputError, match="positive number or 'exact'"):
        asymmetry(score, x, key=key, probes=0)
    with pytest.raises(InputError, match="need key"):
        asymmetry(score, x)
    with pytest.raises(InputError, match="Jacobian of 65 rows"):
        asymmetry(lambda y: y, jnp.ones((2, 65)), probes="exact")
    with pytest.raises(InputError, match="vector like x"):
        asymmetry(lambda y: y[0], x, key=key)
    with pytest.raises(InputError, match="at least twice the features"):
        gauge_error(score, x, basis=RandomFourier(2, 6, key=key))
    with pytest.raises(InputError, match="ridge must be positive"):
        project_conservative(score, x, basis=quadratics, ridge=0.0)
    exact = MixturePosterior(Linear(), [[0.0, 0.0]], 1.0)
    with pytest.raises(InputError, match="a time with noise"):
        asymmetry(exact, x, 1.0, key=key)
    with pytest.raises(InputError, match="needs a time t"):
        asymmetry(exact, x, key=key)
    with pytest.raises(InputError, match="antisymmetric"):
        gauge_field(score, jnp.eye(2))
    with pytest.raises(InputError, match="must be positive"):
        RandomFourier(2, 8, scale=0.0, key=key)
