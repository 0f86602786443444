"""The light bridge against quadrature, the published drift, its own law and its definitions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from light_pairs import pairs

from kinema.errors import InputError
from kinema.generate import bridges
from kinema.generate.bridges import LightBridge, light_bridge_loss, plan_gap
from kinema.generate.gaussian_mixture import bures_wasserstein
from kinema.motion import Law, integrate

CENTRES = np.array([[2.0, 0.5], [-1.0, 1.5], [0.3, -2.0]])
WEIGHTS = np.array([0.5, 0.3, 1.2])
DIAGONAL = np.array([[0.5, 1.4], [1.0, 0.7], [0.2, 2.0]])
FULL = np.array([[[0.7, 0.3], [0.3, 0.5]], [[1.2, -0.5], [-0.5, 0.9]], [[0.4, 0.0], [0.0, 2.0]]])
ORIGINS = np.array([[0.4, -0.3], [1.0, 0.8]])
KINDS = {"diagonal": DIAGONAL, "full": FULL}
loss = eqx.filter_jit(light_bridge_loss)
both = pytest.mark.parametrize("scales", KINDS.values(), ids=KINDS)


def bridge(scales=DIAGONAL, eps=0.6, origins=None):
    return LightBridge(CENTRES, scales, WEIGHTS, eps=eps, origins=origins)


@both
@pytest.mark.parametrize("origins", [None, ORIGINS])
def test_normalizer_and_plan_equal_quadrature(scales, origins, x64):
    model, x = bridge(scales, origins=origins), jnp.array([0.3, -0.4])
    axis = jnp.linspace(-14, 14, 281)
    ys = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    np.testing.assert_allclose(*against_quadrature(model, x, ys, (axis[1] - axis[0]) ** 2), atol=1e-8)


@eqx.filter_jit
def against_quadrature(model, x, ys, cell):
    """log c(x), some log pi(y | x), its mean and its covariance, as one vector: by the model and by sums over `ys`."""
    log_joint = ys @ x / model.eps + jax.vmap(model.log_potential)(ys)
    log_c = jax.nn.logsumexp(log_joint) + jnp.log(cell)
    mass = jnp.exp(log_joint - log_c) * cell
    mean = mass @ ys
    cov = jnp.einsum("n,ni,nj->ij", mass, ys - mean, ys - mean)
    plan = model.conditional(x)
    ours = model.log_normalizer(x)[None], jax.vmap(plan.log_prob)(ys[::997]), plan.mean, plan.cov.ravel()
    return jnp.concatenate(ours), jnp.concatenate([log_c[None], (log_joint - log_c)[::997], mean, cov.ravel()])


def published_drift(t, x, scales, eps):
    """-x / (1 - t) + eps grad log sum_k a_k N(r_k | 0, eps S_k) I_k, I_k the integral of exp(h_k.y - y.A_k y / 2).

    A = t / (eps (1 - t)) + 1 / (eps S) and h = x / (eps (1 - t)) + r / (eps S); it divides by 1 - t.
    """

    def log_sum(x):
        terms = []
        for a, r, s in zip(WEIGHTS, CENTRES, scales):
            s = jnp.diag(s) if s.ndim == 1 else jnp.asarray(s)
            inverse = jnp.linalg.inv(s) / eps
            A = t / (eps * (1 - t)) * jnp.eye(2) + inverse
            h = x / (eps * (1 - t)) + inverse @ r
            log_normal = -(r @ inverse @ r + jnp.linalg.slogdet(s)[1]) / 2
            terms.append(jnp.log(a) + log_normal + (h @ jnp.linalg.solve(A, h) - jnp.linalg.slogdet(A)[1]) / 2)
        return jax.nn.logsumexp(jnp.stack(terms))

    return -x / (1 - t) + eps * jax.grad(log_sum)(x)


@both
def test_drift_equals_the_published_one_and_is_finite_at_both_ends(scales, x64):
    model, x = bridge(scales), jnp.array([0.7, -1.1])
    drift, peer = jax.jit(lambda t, x: model.drift(t, x)), jax.jit(lambda t: published_drift(t, x, scales, 0.6))
    for t in (0.0, 0.5, 0.99):
        np.testing.assert_allclose(drift(t, x), peer(t), rtol=1e-8)
    for t in (0.0, 1.0):
        assert np.isfinite(drift(t, 50 * x)).all()
    # the drift is eps grad log E[exp(|y|^2 / 2 eps) v(y)], y the reference motion's end
    last = x + 0.6 * jax.grad(lambda x: model.log_potential(x))(x)
    np.testing.assert_allclose(drift(1.0, x), last, rtol=1e-10)
    first = 0.6 * jax.grad(lambda x: model.log_normalizer(x))(x) - x
    np.testing.assert_allclose(drift(0.0, x), first, rtol=1e-10)


@both
def test_other_origins_change_no_plan_and_no_drift(scales, x64):
    model, x = bridge(scales), jnp.array([0.7, -1.1])
    moved = model.recentred(jnp.asarray(ORIGINS))
    assert not np.allclose(moved.centres, model.centres)
    for t in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(moved.drift(t, x), model.drift(t, x), rtol=1e-10)
    y = jnp.array([0.2, 0.9])
    np.testing.assert_allclose(moved.conditional(x).log_prob(y), model.conditional(x).log_prob(y), rtol=1e-10)
    x0, x1 = pairs(model, 200, jr.key(1))
    np.testing.assert_allclose(plan_gap(moved, model, x0, x1), 0, atol=1e-10)


def test_diagonal_matrices_are_diagonals(x64):
    model, full = bridge(DIAGONAL), bridge(np.stack([np.diag(one) for one in DIAGONAL]))
    x0, x1 = pairs(model, 50, jr.key(1))
    for t in (0.0, 0.4, 1.0):
        np.testing.assert_allclose(full.drift(t, x0[0]), model.drift(t, x0[0]), rtol=1e-10)
    np.testing.assert_allclose(loss(full, x0, x1), loss(model, x0, x1), rtol=1e-10)
    a, b = full.conditional(x0[0]), model.conditional(x0[0])
    np.testing.assert_allclose(a.cov, b.cov, rtol=1e-10)


@both
def test_the_law_ends_where_the_plan_does(scales, key):
    """Means and variances of integrated paths at t = 0.5 and t = 1 against exact draws of the same bridge."""
    model, x, n = bridge(scales), jnp.array([0.3, -0.4]), 1500
    assert isinstance(model, Law)
    ts = jnp.array([0.0, 0.5, 1.0])

    @jax.jit
    def solved(key):
        return integrate(model, x, ts, method="euler_maruyama", dt=1 / 32, key=key).states

    ends = jax.vmap(solved)(jr.split(key, n))
    exact = jax.jit(jax.vmap(lambda k: model.sample_bridge(ts, x, key=k)))(jr.split(jr.key(1), n))
    np.testing.assert_allclose(exact[:, 0], jnp.broadcast_to(x, (n, 2)))
    for i in (1, 2):
        error = np.sqrt(2) * exact[:, i].std(0) / n**0.5
        # a step is 1/32: the bias of its order in the drift
        assert_within_error(ends[:, i].mean(0), exact[:, i].mean(0), standard_error=error + 0.01)
        assert_within_error(ends[:, i].var(0), exact[:, i].var(0), standard_error=2 * error * exact[:, i].std(0) + 0.02)
    plan = model.conditional(x)
    assert_within_error(exact[:, 2].mean(0), plan.mean, standard_error=jnp.sqrt(jnp.diag(plan.cov) / n))


def test_volatility_is_that_of_the_brownian_bridge(key):
    """Between fixed ends the variance at t = 0.5 is eps / 4; covariance of two times eps s (1 - t)."""
    model = LightBridge(jnp.zeros((1, 1)), 1e-8, eps=0.8)
    n = 20_000
    draw = jax.vmap(lambda k: model.sample_bridge(jnp.array([0.2, 0.5]), jnp.zeros(1), key=k))
    paths = jax.jit(draw)(jr.split(key, n))
    early, middle = paths[:, 0, 0], paths[:, 1, 0]
    assert_within_error(middle.var(), 0.8 / 4, standard_error=0.2 * (2 / n) ** 0.5)
    assert_within_error((early * middle).mean(), 0.8 * 0.2 * 0.5, standard_error=0.2 * (2 / n) ** 0.5)
    at = jax.jit(jax.vmap(lambda k: model.sample_at(0.5, jnp.zeros(1), key=k)))(jr.split(key, n))
    assert_within_error(at.var(), 0.8 / 4, standard_error=0.2 * (2 / n) ** 0.5)


def test_gap_is_zero_at_the_truth_and_the_divergence_elsewhere(x64):
    truth = LightBridge([[1.5]], 0.8, eps=0.5)
    other = LightBridge([[1.2]], 1.1, eps=0.5)
    x0, x1 = pairs(truth, 100_000, jr.key(0))
    assert plan_gap(truth, truth, x0, x1) == 0
    # KL of N(1.5 + 0.8 x, 0.4) from N(1.2 + 1.1 x, 0.55), x ~ N(0, 1)
    exact = 0.5 * (0.4 / 0.55 - 1 + np.log(0.55 / 0.4) + (0.3**2 + 0.3**2) / 0.55)
    assert_within_error(plan_gap(other, truth, x0, x1), exact, standard_error=0.004)
    heavier = eqx.tree_at(lambda b: b.log_weights, other, other.log_weights + 3.0)
    np.testing.assert_allclose(plan_gap(heavier, other, x0, x1), 0, atol=1e-9)


def test_uvp_of_one_gaussian_against_another(x64):
    """N(m, 2) from N(0, 8) in one dimension: 100 (m^2 + 2) / (var / 2)."""
    model, truth = LightBridge([[3.0]], 2.0, eps=1.0), LightBridge([[0.0]], 8.0, eps=1.0)
    x1 = jnp.array([[1.0], [-1.0]]) * 2
    found = bridges.conditional_bures_uvp(model, truth, jnp.zeros((4, 1)), x1)
    np.testing.assert_allclose(found, 100 * (9 + (8**0.5 - 2**0.5) ** 2) / (4 / 2))


@pytest.mark.parametrize("expand", [True, False])
@both
def test_batch_loss_is_the_mean_of_single_samples(scales, expand, x64):
    model = bridge(scales, origins=ORIGINS)
    x0, x1 = pairs(model, 64, jr.key(1))
    single = jax.vmap(model.log_normalizer)(x0).mean() - jax.vmap(model.log_potential)(x1).mean()
    np.testing.assert_allclose(loss(model, x0, x1, expand=expand), single, rtol=1e-12)


def test_single_precision_keeps_digits_where_squares_would_not():
    """|y|^2 / eps of 1e6: differences agree with double precision, the expanded squares do not."""
    centres = np.array([[30.0, 10.0], [-20.0, 25.0]])
    x, y = np.random.default_rng(0).normal(size=(2, 64, 2))
    y = y * 0.03 + centres[np.arange(64) % 2]

    def level(expand):
        model = LightBridge(centres, 1.0, eps=1e-3)
        x0, x1 = jnp.asarray(0.01 * x, model.eps.dtype), jnp.asarray(y, model.eps.dtype)
        return loss(model, x0, x1, expand=expand)

    with jax.enable_x64(True):
        exact = float(level(False))
    assert abs(level(False) - exact) < 0.05
    assert abs(level(True) - exact) > abs(level(False) - exact)


def test_small_volatility_stays_finite(key):
    """x.S x / (2 eps) of 1e5: everything is in logarithms."""
    model = LightBridge(CENTRES, DIAGONAL, WEIGHTS, eps=1e-4)
    x = jnp.array([3.0, -2.0])
    value, gradient = jax.value_and_grad(lambda m: loss(m, x[None], x[None] + 1))(model)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(model.drift(1.0, x)).all() and np.isfinite(model.sample(x, key=key)).all()


def test_a_component_without_weight_is_as_if_absent(x64):
    more = LightBridge(np.vstack([CENTRES, [[9.0, 9.0]]]), 1.0, np.append(WEIGHTS, 0.0), eps=0.6)
    less = LightBridge(CENTRES, 1.0, WEIGHTS, eps=0.6)
    x = jnp.array([[0.5, -0.5]])
    np.testing.assert_allclose(more.drift(0.4, x[0]), less.drift(0.4, x[0]), rtol=1e-12)
    gradient = jax.grad(lambda m: loss(m, x, x))(more)
    assert np.isfinite(gradient.centres).all() and np.isfinite(gradient.log_weights[:3]).all()


def test_bures_wasserstein_of_commuting_and_singular_covariances(x64):
    one, other = jnp.diag(jnp.array([4.0, 0.0])), jnp.diag(jnp.array([1.0, 9.0]))
    found = bures_wasserstein(jnp.zeros(2), one, jnp.array([1.0, 0.0]), other)
    np.testing.assert_allclose(found, 1 + (2 - 1) ** 2 + 3**2, rtol=1e-7)
    # of pushforwards by A: W2^2 = tr (A - 1)^2 C where A is symmetric and positive
    A, C = jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.array([[1.0, 0.3], [0.3, 2.0]])
    move = A - jnp.eye(2)
    found = bures_wasserstein(jnp.zeros(2), C, jnp.zeros(2), A @ C @ A)
    np.testing.assert_allclose(found, jnp.trace(move @ C @ move), rtol=1e-7)


def test_bridge_refuses_bad_input():
    for message, options in {
        "eps must be a positive number": {"eps": 0.0},
        "scales must be one number": {"scales": np.ones((3, 5)), "eps": 1.0},
        "scales must be positive": {"scales": -1.0, "eps": 1.0},
        "symmetric": {"scales": np.tile([[1.0, 0.5], [0.0, 1.0]], (3, 1, 1)), "eps": 1.0},
        "positive definite": {"scales": np.tile([[1.0, 2.0], [2.0, 1.0]], (3, 1, 1)), "eps": 1.0},
        "weights must be 3 numbers": {"weights": np.zeros(3), "eps": 1.0},
        "weights must be finite": {"weights": [1.0, np.inf, 1.0], "eps": 1.0},
        "origins must have shape": {"origins": np.zeros(2), "eps": 1.0},
    }.items():
        with pytest.raises(InputError, match=message):
            LightBridge(CENTRES, **options)
    with pytest.raises(InputError, match=r"centres must have shape \(components, dim\), got \(2,\)"):
        LightBridge(np.ones(2), eps=1.0)
    for ts in ([0.5, 0.2], [-0.1], [0.5, 1.5], 0.5):
        with pytest.raises(InputError, match="ts must increase within"):
            bridge().sample_bridge(ts, jnp.zeros(2), key=jr.key(0))
