"""The Lyapunov function of Lion-K: exact falls, exact phases, certificates, and the two ways of watching a run."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import fit
from kinema.learn.optim import L1, L2, Convex, Huber, LionSettings, Nuclear, lion_k
from kinema.verify import lyapunov, lyapunov_trace, monitor_lion_k, optimality_gap, phase_probe

SCALES = jnp.array([[3.0, 1.0, 0.2], [0.5, 2.0, 1.0]])
CENTRE = jnp.array([[2.0, -0.3, 1.0], [0.1, -4.0, 0.5]])


def quadratic(x):
    return jnp.sum(SCALES * (x - CENTRE) ** 2) / 2


def watched(rule, steps, x, loss=quadratic):
    """(trace of every step, last parameters, curvature of every step)."""
    rule = monitor_lion_k(rule, every=1, keep=steps)

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(loss)(x)
        updates, state = rule.update(grads, state, x, value=value)
        new = optax.apply_updates(x, updates)
        return (new, state), loss(new) - value - optax.tree.vdot(grads, updates)

    (x, state), curvature = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((x, rule.init(x)))
    return lyapunov_trace(state), x, np.asarray(curvature)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [Huber(0.1), L2(), L1()], ids=lambda k: type(k).__name__)
def test_h_falls_inside(k):
    """With implicit decay, to rounding; where ∇K jumps it rises by no more than the curvature of the step."""
    trace, x, curvature = watched(lion_k(0.05, k, weight_decay=1.0, implicit=True), 1200, 4 * jnp.ones((2, 3)))
    first = np.argmax(trace.distance["."] < 1e-6)
    rises = np.diff(trace.value)[first:]
    assert 0 < first < 500 and np.all(np.diff(trace.steps) == 1)
    assert np.all(rises <= (1e-12 if not isinstance(k, L1) else curvature[first:-1] + 1e-12))
    assert (rises.max() > 1e-6) == isinstance(k, L1)
    if not isinstance(k, L1):
        gap = optimality_gap(LionSettings(0.05, k, 0.9, 0.99, 1.0), x, jax.grad(quadratic)(x))
        assert abs(gap) < 1e-9


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implicit", [False, True])
def test_the_distance_shrinks_by_its_factor(implicit):
    """Pulled to x = 1 + ... from outside, every coordinate of λx - 1 shrinks by 1 - ηλ, or 1 / (1 + ηλ), exactly."""
    rule = lion_k(0.02, L1(), weight_decay=1.0, implicit=implicit)
    trace, *_ = watched(rule, 200, 4 * jnp.ones(3), loss=lambda x: jnp.sum((x - 9) ** 2))
    distance = trace.distance["."]
    np.testing.assert_allclose(distance[1:] / distance[:-1], 1 / 1.02 if implicit else 0.98, rtol=1e-10)
    assert trace.entered is None and np.all(trace.phase == 1)


@pytest.mark.usefixtures("x64")
def test_the_parts_by_hand():
    """K = |m|_1, λ = 2, one leaf that decays and one that does not."""
    rule = lion_k(0.1, L1(), b1=0.5, b2=0.75, weight_decay=2.0, mask="w")
    params, mu = {"bias": jnp.array([5.0]), "w": jnp.array([0.25, 1.0])}, {"bias": [3.0], "w": [1.0, -2.0]}
    state = optax.ScaleByLionState(jnp.zeros((), int), jax.tree.map(jnp.array, mu, is_leaf=lambda x: type(x) is list))
    report = lyapunov(rule, 7.0, params, (state,), stochastic=True)
    decayed = 0.5 * 0.1 / (0.2 * 0.5 + 0.25) * (3 + 2 * (0.25 - 2.0))
    assert np.isclose(report.coupling, decayed + 0.5 * 0.1 / 0.25 * 3)
    assert np.isclose(report.value, 7 + report.coupling) and report.barrier == 0
    assert list(report.distance) == ["w"] and report.distance["w"] == 1 and report.phase == 1 and report.stochastic
    squared = lyapunov(rule.settings._replace(k=Huber(0.5)), 0.0, params, state)
    assert np.isclose(squared.barrier, 0.5 / 2 * (0.25 + 1) / 2)


@pytest.mark.usefixtures("x64")
def test_the_certificate_bounds_the_gap(key):
    """f(x) - min f on the box is at most the gap, for any x of the box."""
    settings = LionSettings(0.1, L1(), 0.9, 0.99, 2.0)
    best = quadratic(jnp.clip(CENTRE, -0.5, 0.5))
    points = jr.uniform(key, (50, 2, 3), minval=-0.5, maxval=0.5)
    gaps = jax.vmap(lambda x: optimality_gap(settings, x, jax.grad(quadratic)(x)))(points)
    excess = jax.vmap(quadratic)(points) - best
    assert jnp.all(gaps >= excess) and jnp.all(gaps < 20 * excess)
    at_best = jnp.clip(CENTRE, -0.5, 0.5)
    assert abs(optimality_gap(settings, at_best, jax.grad(quadratic)(at_best))) < 1e-12


def test_watching_a_fit(key):
    """The monitor within the optimizer and the probe beside it see the same; updates are those of the rule alone."""
    rule = lion_k(0.05, Nuclear(), weight_decay=1.0)
    probe = phase_probe(rule, loss=quadratic, every=20)

    def objective(x, batch, key):
        return quadratic(x), {}

    options = {"steps": 60, "chunk": 20, "key": key, "progress": False}
    watch = monitor_lion_k(rule, every=20, keep=2)
    run = fit(3 * CENTRE, objective, optimizer=optax.chain(optax.identity(), watch), probes=[probe], **options)
    plain = fit(3 * CENTRE, objective, optimizer=rule, **options)
    assert np.array_equal(run.model, plain.model)
    trace, seen = lyapunov_trace(run.state.opt_state), run.history.probes["phase"]
    assert trace.steps.tolist() == [20, 40] and seen.steps.tolist() == [0, 20, 40, 60]
    np.testing.assert_allclose(trace.distance["."], seen.values["distance/."][1:3], rtol=1e-5)
    np.testing.assert_allclose(trace.loss, seen.values["objective"][1:3], rtol=1e-6)
    np.testing.assert_allclose(trace.value, seen.values["value"][1:3], rtol=1e-6)
    assert np.all(trace.value > trace.loss) and seen.values["gap"][-1] < seen.values["gap"][0]
    # a run of optax's own Lion is watched by its numbers
    lion = optax.lion(0.05, weight_decay=1.0)
    report = lyapunov(LionSettings(0.05, L1(), 0.9, 0.99, 1.0), 0.0, CENTRE, lion.init(CENTRE))
    assert np.isclose(report.distance["."], np.hypot(1, 3))


class Bare(Convex):
    def value(self, m):
        return jnp.sum(jnp.abs(m))

    def grad(self, m):
        return jnp.sign(m)


def test_bad_input_is_refused():
    x, rule = jnp.ones((2, 3)), lion_k(0.1, L1())
    watch = monitor_lion_k(rule)
    for bad, message in [
        (lambda: monitor_lion_k(lion_k(0.1, L1(), weight_decay=0.0)), "needs weight_decay > 0, got 0.0"),
        (lambda: monitor_lion_k(optax.lion(0.1)), "watches what lion_k made, got GradientTransformation"),
        (lambda: monitor_lion_k(rule, every=0), "every and keep must be at least 1, got every=0"),
        (lambda: monitor_lion_k(lion_k(0.1, Bare())).init(x), r"leaf \.: Bare has no conjugate"),
        (lambda: monitor_lion_k(lion_k(0.1, L1(), mask=False)).init(x), "mask leaves none"),
        (lambda: watch.update(x, watch.init(x), x), "needs update"),
        (lambda: lyapunov(rule, 0.0, x, optax.adam(0.1).init(x)), "no momentum of Lion"),
        (lambda: lyapunov_trace(rule.init(x)), "no monitor in it"),
        (lambda: phase_probe(lion_k(0.1, L1(), weight_decay=0.0)), "weight_decay > 0"),
    ]:
        with pytest.raises(InputError, match=message):
            bad()
