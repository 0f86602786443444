"""Fits of light bridges against Gaussian bridges in closed form and bridges that are known; the estimator."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from light_pairs import pairs

from kinema.errors import InputError, NotFinite
from kinema.generate import bridges
from kinema.generate.bridges import LightBridge, LightBridgeEstimator, fit_light_bridge, plan_gap
from kinema.generate.bridges.fitting import _falling, _worse
from kinema.generate.bridges.start import clusters

CENTRES = np.array([[2.0, 0.5], [-1.0, 1.5], [0.3, -2.0]])
WEIGHTS = np.array([0.5, 0.3, 1.2])


def test_one_component_is_the_gaussian_bridge(key):
    """Covariance of the ends (sqrt(4 s0^2 s1^2 + eps^2) - eps) / 2, [Bunne et al. 2023], from unpaired samples."""
    s0, s1, eps, n = 1.3, 0.7, 0.9, 40_000
    key_x, key_y, key_fit = jr.split(key, 3)
    x0, x1 = 5.0 + s0 * jr.normal(key_x, (n, 1)), -2.0 + s1 * jr.normal(key_y, (n, 1))
    model = fit_light_bridge(x0, x1, eps=eps, components=1, steps=1500, rate=0.03, validation=0.0, key=key_fit).bridge
    cov = (np.sqrt(4 * s0**2 * s1**2 + eps**2) - eps) / 2
    assert_within_error(jnp.exp(model.log_scales) * s0**2, cov, standard_error=cov * (3 / n) ** 0.5 + 0.002)
    assert_within_error(model.conditional(jnp.array([5.0])).mean, -2.0, standard_error=s1 / n**0.5 + 0.001)


def test_full_covariance_recovers_a_rotated_gaussian_bridge(key):
    """With p0 = N(0, 1): eps S + S^2 is the covariance of p1; a diagonal S cannot have its correlation."""
    eps, n = 0.5, 20_000
    true = np.array([[0.8, 0.4], [0.4, 0.6]])
    x0, x1 = pairs(LightBridge([[1.0, -1.0]], true[None], eps=eps), n, key)
    options = {"eps": eps, "components": 1, "steps": 1000, "rate": 0.03, "key": key, "progress": False}
    full = fit_light_bridge(x0, x1, covariance="full", **options).bridge
    np.testing.assert_allclose(full.factors[0] @ full.factors[0].T, true, atol=0.03)
    diagonal = fit_light_bridge(x0, x1, **options).bridge
    assert plan_gap(diagonal, full, x0, x1) > 0.05


@pytest.fixture(scope="module")
def problem():
    """A known bridge of three components, its ends, and a fit of six to them."""
    truth = LightBridge(3 * CENTRES, 1.0, WEIGHTS, eps=1.0)
    x0, x1 = pairs(truth, 20_000, jr.key(3))
    return truth, x0, x1, fit_light_bridge(x0, x1, eps=1.0, components=6, steps=2000, key=jr.key(4), progress=False)


def test_fit_finds_the_plan_not_just_the_marginals(problem):
    truth, x0, x1, (model, history) = problem
    uvp = bridges.conditional_bures_uvp(model, truth, x0[:200], x1)
    assert uvp < 1
    assert abs(plan_gap(model, truth, x0, x1)) < 0.01
    # one that has the right marginals and forgets x: so much noise that y has nothing of it
    apart = LightBridge(x1.mean(0)[None], jnp.cov(x1.T)[None] / 1e6, eps=1e6)
    np.testing.assert_allclose(apart.conditional(x0[0]).cov, jnp.cov(x1.T), rtol=1e-3)
    assert bridges.conditional_bures_uvp(apart, truth, x0[:200], x1) > 100
    assert len(history) == 2000
    assert history.probes["held-out"].steps.tolist() == [500, 1000, 1500, 2000]


def test_units_and_places_of_the_data_change_nothing(problem):
    """Both ends doubled with eps times four, and moved by 300 in their own directions: the same bridge, moved."""
    _, x0, x1, fitted = problem
    moves = np.array([[300.0, -200.0], [-100.0, 400.0]])
    x, y = 2 * np.asarray(x0, float) + moves[0], 2 * np.asarray(x1, float) + moves[1]
    model = fit_light_bridge(x, y, eps=4.0, components=6, steps=2000, key=jr.key(4), progress=False).bridge
    for i in range(3):
        near = fitted.bridge.conditional(x0[i]).mean
        far = model.conditional(jnp.asarray(x[i], jnp.float32)).mean
        np.testing.assert_allclose((far - moves[1]) / 2, near, atol=0.05)
    drift = model.drift(0.5, jnp.asarray(2 * np.ones(2) + moves.mean(0), jnp.float32))
    np.testing.assert_allclose((drift - moves[1] + moves[0]) / 2, fitted.bridge.drift(0.5, jnp.ones(2)), atol=0.05)


def test_eps_falls_over_the_first_half():
    path = _falling(1.0, 0.001, 1000)
    assert path[0] == 1.0 and (path[500:] == 0.001).all() and (np.diff(path) <= 0).all()
    np.testing.assert_allclose(path[250], 0.001**0.5)
    assert (_falling(0.2, 0.2, 10) == 0.2).all()


def test_small_eps_sends_clusters_to_the_nearest(key):
    """Two clusters, both moved by (1, 1); a thousandth of their variance is the volatility."""
    side = jr.rademacher(key, (4000, 1), float) * jnp.array([0.0, 2.0])
    x0, x1 = (place + side + 0.1 * jr.normal(k, (4000, 2)) for place, k in zip((0.0, 1.0), jr.split(key)))
    found = fit_light_bridge(x0, x1, eps=1e-3, components=4, steps=1000, key=key, progress=False).bridge
    ends = jax.vmap(lambda x: found.conditional(x).mean)(x0[:200])
    assert ((ends - x0[:200])[:, 1] > 0).all() and np.abs(ends - x0[:200] - 1).max() < 0.3


def test_annealing_gives_the_bridge_of_the_last_eps(problem):
    truth, x0, x1, _ = problem
    options = {"eps": 1.0, "components": 6, "steps": 2000, "key": jr.key(4), "progress": False}
    model = fit_light_bridge(x0, x1, anneal_from=20.0, **options).bridge
    assert model.eps == 1.0
    assert abs(plan_gap(model, truth, x0, x1)) < 0.01


def test_a_start_is_gone_on_from(problem):
    """From a good bridge, ten careful steps end better than ten from the first guess; at another eps too."""
    truth, x0, x1, (model, _) = problem
    options = {"components": 6, "steps": 10, "rate": 1e-4, "key": jr.key(5), "progress": False}
    cold = fit_light_bridge(x0, x1, eps=1.0, **options).bridge
    warm = fit_light_bridge(x0, x1, eps=1.0, start=model, **options).bridge
    assert plan_gap(cold, truth, x0, x1) > 0.1
    assert abs(plan_gap(warm, truth, x0, x1)) < 0.02
    assert fit_light_bridge(x0, x1, eps=0.5, start=model, **options).bridge.eps == 0.5
    with pytest.raises(InputError, match=r"start must have .*\(7, 2, 'diagonal'\), got \(6, 2"):
        fit_light_bridge(x0, x1, eps=1.0, start=model, **options | {"components": 7})


def test_held_out_samples_stop_a_fit_that_learns_by_heart(key, monkeypatch):
    """Thirty samples for ninety numbers: every look is worse than the first, and the first is kept."""
    monkeypatch.setattr("kinema.generate.bridges.fitting.CHECK", 20)
    x0, x1 = pairs(LightBridge(jnp.zeros((1, 4)), 0.6, eps=1.0), 300, key)
    begin = LightBridge(0.1 * jr.normal(key, (10, 4)), 0.6, eps=1.0)
    options = {"eps": 1.0, "components": 10, "steps": 1000, "rate": 0.02, "start": begin, "key": key}
    found = fit_light_bridge(x0, x1, validation=0.9, progress=False, **options)
    losses = found.history.probes["held-out"].values["loss"]
    assert len(found.history) == 20 * len(losses) < 1000
    assert len(losses) - 1 - np.argmin(losses) >= 5 and losses[-1] > losses.min() + 0.1


def test_worse_is_more_than_two_standard_errors():
    before = [np.zeros(100), np.zeros(100)]
    noise = np.where(np.arange(100) % 2, 1.0, -1.0)
    for rise, worse in ((0.15, False), (0.25, True), (-0.25, False)):
        assert _worse([rise + noise, np.zeros(100)], before) == worse
        assert _worse([np.zeros(100), noise - rise], before) == worse


def test_first_centres_are_those_of_the_clusters(key):
    """Nine clusters of width 0.1, nine centres: each within a few standard errors of its cluster's mean."""
    grid = jnp.stack(jnp.meshgrid(jnp.arange(3.0), jnp.arange(3.0)), -1).reshape(-1, 2)
    rows = (grid[:, None] + 0.1 * jr.normal(key, (9, 100, 2))).reshape(-1, 2)
    centres, within = clusters(rows, 9, jr.key(1))
    order = np.lexsort(np.round(centres).T)
    np.testing.assert_allclose(centres[order], grid[np.lexsort(np.asarray(grid).T)], atol=0.05)
    assert_within_error(within, 0.01, standard_error=0.01 * (2 / 1800) ** 0.5)


def test_fit_refuses_bad_input(key):
    x = np.random.default_rng(0).normal(size=(50, 2))
    bad = x.copy()
    bad[7, 1] = np.nan
    for message, (x0, x1, options) in {
        "eps must be a positive number": (x, x, {"eps": -1.0}),
        "components must be a whole number >= 1, got 0": (x, x, {"components": 0}),
        "components must be at most the number of target samples to begin from, 45, got 46": (
            x,
            x,
            {"components": 46},
        ),
        "same dim, got 2 and 3": (x, np.ones((50, 3)), {}),
        "x0 must be finite, row 7 is not": (bad, x, {}),
        "x1 must be finite, row 7 is not": (x, bad, {}),
        "x1 must have shape": (x, x[0], {}),
        "x1 must vary": (x, np.ones((50, 2)), {}),
        "unknown covariance 'ful'; did you mean 'full'": (x, x, {"covariance": "ful"}),
        "rate must be positive": (x, x, {"rate": 0.0}),
        r"validation must be a share in \[0, 1\)": (x, x, {"validation": 1.0}),
        "anneal_from must be at least eps": (x, x, {"anneal_from": 0.1}),
    }.items():
        with pytest.raises(InputError, match=message):
            fit_light_bridge(x0, x1, **{"eps": 1.0, "components": 3, "key": key} | options)
    with pytest.raises(NotFinite, match=r"loss is not finite at step \d+; use a smaller rate"):
        fit_light_bridge(x, x, eps=1.0, components=3, steps=20, rate=1e4, key=key, progress=False)


@pytest.fixture(scope="module")
def fitted(problem):
    _, x0, x1, _ = problem
    return LightBridgeEstimator(eps=1.0, components=6, steps=2000, random_state=3, progress=False).fit(x0, x1)


def test_estimator_agrees_with_its_bridge(fitted, problem):
    _, x0, x1, _ = problem
    model = fitted.bridge_
    X = np.asarray(x0[:500])
    paths = fitted.sample_bridge(X, [0.0, 0.4, 1.0])
    np.testing.assert_array_equal(paths[:, 0], X)
    np.testing.assert_allclose(paths[:, 2], fitted.transform(X), atol=1e-5)
    np.testing.assert_allclose(fitted.drift(1.0, X)[3], model.drift(1.0, x0[3]), rtol=1e-4, atol=1e-5)
    log_prob = fitted.log_prob(X, x1[:500])
    np.testing.assert_allclose(log_prob[3], model.conditional(x0[3]).log_prob(x1[3]), rtol=1e-4)
    moved = fitted.transform(x0)
    assert_within_error(moved.mean(0), x1.mean(0), standard_error=x1.std(0) * (2 / len(x1)) ** 0.5 + 0.02)
    assert fitted.n_features_in_ == 2 and len(fitted.history_) == 2000
    np.testing.assert_array_equal(fitted.transform(X), fitted.transform(X))


def test_estimator_keeps_to_the_conventions(fitted):
    assert LightBridgeEstimator(**fitted.get_params()).get_params() == fitted.get_params()
    assert repr(fitted) == "LightBridgeEstimator(components=6, steps=2000, random_state=3, progress=False)"
    fresh = LightBridgeEstimator()
    assert fresh.set_params(eps=0.3) is fresh and fresh.eps == 0.3
    assert not [name for name in vars(fresh) if name.endswith("_")]
    with pytest.raises(InputError, match="unknown parameter 'epz'; did you mean 'eps'"):
        fresh.set_params(epz=1.0)
    with pytest.raises(InputError, match="not fitted"):
        fresh.transform(np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"X must have shape \(n, 2\), got \(3, 4\)"):
        fitted.transform(np.zeros((3, 4)))
    with pytest.raises(InputError, match="X must be finite, row 1 is not"):
        fitted.transform([[0.0, 1.0], [np.inf, 0.0]])
    with pytest.raises(InputError, match="same number of rows, got 2 and 3"):
        fitted.log_prob(np.zeros((2, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="ts must increase within"):
        fitted.drift(1.5, np.zeros((2, 2)))
    with pytest.raises(InputError, match="eps must be a positive number"):
        LightBridgeEstimator(eps=-1.0).fit(np.ones((3, 2)), np.ones((3, 2)))


def test_estimator_goes_on_warm(fitted, problem):
    truth, x0, x1, _ = problem
    again = LightBridgeEstimator(**fitted.get_params()).set_params(warm_start=True, steps=10, rate=1e-4)
    again.bridge_ = fitted.bridge_
    before = float(plan_gap(again.bridge_, truth, x0, x1))
    np.testing.assert_allclose(plan_gap(again.fit(x0, x1).bridge_, truth, x0, x1), before, atol=1e-2)
    cold = again.set_params(warm_start=False).fit(x0, x1).bridge_
    assert plan_gap(cold, truth, x0, x1) > 0.1


def test_scikit_learn_clones_it_and_puts_it_in_a_pipeline(problem):
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    _, x0, x1, _ = problem
    first = LightBridgeEstimator(eps=0.5, components=6, steps=10, rate=1e-4, progress=False)
    copy = base.clone(first)
    assert copy is not first and copy.get_params() == first.get_params()
    moved = pipeline.Pipeline([("bridge", copy)]).fit(np.asarray(x0), np.asarray(x1)).transform(np.asarray(x0[:5]))
    assert moved.shape == (5, 2)


def test_same_key_same_bits_and_no_second_compilation(problem, caplog):
    _, x0, x1, _ = problem
    options = {"eps": 1.0, "components": 6, "steps": 10, "rate": 1e-4, "progress": False}
    one = fit_light_bridge(x0, x1, key=jr.key(0), **options).bridge
    with jax.log_compiles(), caplog.at_level("WARNING"):
        same, other = (fit_light_bridge(x0, x1, key=jr.key(seed), **options).bridge for seed in (0, 1))
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same)))
    assert not (one.centres == other.centres).all()
