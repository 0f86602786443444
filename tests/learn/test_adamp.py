"""AdamP, SGDP and the projection against their closed forms and the published rule in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn.optim import adamp, effective_step, radial_projection, scale_invariance, sgdp

SHAPES = {"rows": (4, 6), "kernel": (3, 2, 3, 3), "bias": (5,)}


@pytest.fixture(scope="module")
def gradients():
    """Starts, and gradients of 60 steps: orthogonal to every row of one leaf, to all of another, and any."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}, random.normal(size=(60, 500))


def seen(params, noise):
    """A gradient of a loss that does not see the length of "rows" by row nor that of "kernel" as a whole."""
    grads, place = {}, 0
    for name, w in sorted(params.items()):
        g = noise[place : place + w.size].reshape(w.shape)
        place += w.size
        axes = {"rows": (1,), "kernel": (0, 1, 2, 3)}.get(name)
        if axes:
            g = g - w * (g * w).sum(axes, keepdims=True) / (w * w).sum(axes, keepdims=True)
        grads[name] = g
    return grads


def project(w, g, d, delta, ratio, eps=1e-8):
    """The published projection of one leaf: (direction, share of the decay)."""
    if w.ndim < 2:
        return d, 1.0
    for rows in (len(w), 1):
        v, u, e = w.reshape(rows, -1), g.reshape(rows, -1), d.reshape(rows, -1)
        lengths = np.linalg.norm(v, axis=1)
        cosine = np.abs((u * v).sum(1)) / np.maximum(np.linalg.norm(u, axis=1), eps) / np.maximum(lengths, eps)
        if cosine.max() < delta / np.sqrt(v.shape[1]):
            unit = v / (lengths + eps)[:, None]
            return (e - unit * (unit * e).sum(1, keepdims=True)).reshape(w.shape), ratio
    return d, 1.0


def published(start, noises, direction, rate, decay, scale=1.0):
    params, state = dict(start), dict.fromkeys(start, (0.0, 0.0))
    for t, noise in enumerate(noises, 1):
        for name, g in seen(params, noise).items():
            d, state[name] = direction(t, g, *state[name])
            d, share = project(params[name], g, d, 0.1, 0.1)
            params[name] = params[name] * (1 - rate * decay * share * scale) - rate * d
    return params


def adam_direction(nesterov):
    def direction(t, g, m, v):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        top = 0.9 * m + 0.1 * g if nesterov else m
        return top / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), (m, v)

    return direction


def heavy_direction(nesterov):
    def direction(t, g, b, _):
        b = 0.9 * b + 0.7 * g
        return g + 0.9 * b if nesterov else b, (b, 0.0)

    return direction


def run(rule, start, noises):
    @jax.jit
    def steps(params, noises):
        def step(carry, noise):
            params, state = carry
            updates, state = rule.update(seen(params, noise), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, rule.init(params)), noises)[0][0]

    return steps(jax.tree.map(jnp.asarray, start), jnp.asarray(noises))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_published_rules(x64, gradients, nesterov):
    start, noises = gradients
    ours = run(adamp(0.02, weight_decay=0.1, nesterov=nesterov), start, noises)
    theirs = published(start, noises, adam_direction(nesterov), 0.02, 0.1)
    assert max(np.abs(ours[name] - theirs[name]).max() for name in start) < 1e-12
    ours = run(sgdp(0.02, 0.9, dampening=0.3, weight_decay=0.01, nesterov=nesterov), start, noises)
    theirs = published(start, noises, heavy_direction(nesterov), 0.02, 0.01, scale=10)
    assert max(np.abs(ours[name] - theirs[name]).max() for name in start) < 1e-12


def test_pythagoras_and_the_flag_at_step_50(x64, gradients):
    """A projected step lengthens a weight by its own square alone; momentum and Adam do not hide the invariance."""
    start, noises = gradients
    # the published projection leaves a share 2 eps of the radial part
    rule = optax.chain(radial_projection(optax.scale_by_adam(), eps=1e-16), optax.scale(-0.1))
    params = jax.tree.map(jnp.asarray, start)
    state, step = rule.init(params), jax.jit(rule.update)
    for noise in noises[:51]:
        grads = seen(params, jnp.asarray(noise))
        before, (updates, state) = params, step(grads, state, params)
        params = optax.apply_updates(before, updates)
    assert jax.tree.map(int, scale_invariance(grads, before)) == {"rows": 1, "kernel": 2, "bias": 0}
    rows = [jnp.sum(tree["rows"] ** 2, 1) for tree in (params, before, updates)]
    np.testing.assert_allclose(rows[0], rows[1] + rows[2], rtol=1e-12)
    whole = [jnp.sum(tree["kernel"] ** 2) for tree in (params, before, updates)]
    np.testing.assert_allclose(whole[0], whole[1] + whole[2], rtol=1e-12)
    adam = optax.scale_by_adam()
    direction, _ = adam.update(grads, adam.init(start))
    np.testing.assert_allclose(step(grads, rule.init(before), before)[0]["bias"], -0.1 * direction["bias"])


def test_which_weights_are_projected(x64):
    """Radial gradients never; one row that is seen keeps all; the channels are where the user says."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8)))
    assert int(scale_invariance(w, w)) == 0
    g = seen({"rows": w}, np.random.default_rng(2).normal(size=24))["rows"]
    mixed = g.at[0].add(0.5 * w[0])
    assert [int(scale_invariance(one, w)) for one in (g, mixed)] == [1, 0]
    assert [int(scale_invariance(g.T, w.T, channel_axis=axis)) for axis in (-1, 1)] == [1, 1]
    assert int(scale_invariance(g, w, channel_axis=lambda name, leaf: None)) == 0
    # a row's direction does not depend on how long the row is
    rule = radial_projection(optax.trace(0.9))
    longer = jnp.array([[10.0], [1.0], [1.0]])
    plain, _ = rule.update(g, rule.init(w), w)
    scaled, _ = rule.update(g / longer, rule.init(w), w * longer)
    np.testing.assert_allclose(scaled * longer, plain, rtol=1e-6)
    # around nothing it is projected gradient descent, and a stale direction is projected where the gradient is 0
    unit = w / jnp.linalg.norm(w, axis=1, keepdims=True)
    still = radial_projection(optax.trace(0.9))
    updates, _ = still.update(0 * w, optax.TraceState(w + g), w)
    expected = 0.9 * (g - unit * jnp.sum(unit * g, 1, keepdims=True))
    np.testing.assert_allclose(updates, expected, atol=1e-7)
    zero, _ = rule.update(g, rule.init(w), 0 * w)
    np.testing.assert_allclose(zero, g)


def test_decay_and_its_mask():
    """Decay is a tenth where the weight is invariant, whole where not, none where masked."""
    params = {"a": jnp.eye(2), "b": jnp.eye(2), "c": jnp.eye(2)}
    grads = {"a": jnp.eye(2)[::-1], "b": jnp.eye(2), "c": jnp.eye(2)}
    rule = sgdp(0.5, 0.0, weight_decay=0.2, mask=lambda name, leaf: name != "c")
    updates, _ = rule.update(grads, rule.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.5 * (grads["a"] + 0.02 * params["a"]), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.5 * 1.2 * params["b"], rtol=1e-6)
    np.testing.assert_allclose(updates["c"], -0.5 * params["c"], rtol=1e-6)
    for mask in (["a", "b"], {"a": True, "b": True, "c": False}, lambda tree: {"a": True, "b": True, "c": False}):
        other = sgdp(0.5, 0.0, weight_decay=0.2, mask=mask)
        again, _ = other.update(grads, other.init(params), params)
        assert jax.tree.all(jax.tree.map(np.array_equal, again, updates))


def test_effective_step(x64):
    params = {"w": jnp.array([[3.0, 4.0]]), "zero": jnp.zeros(2)}
    updates = {"w": jnp.array([[-4.0, 3.0]]), "zero": jnp.ones(2)}
    step = effective_step(params, updates)
    assert float(step.relative["w"]) == pytest.approx(1) and float(step.angle["w"]) == pytest.approx(np.pi / 4)
    assert float(step.relative["zero"]) == 0 and float(step.angle["zero"]) == 0
    tiny = effective_step(params["w"], 1e-6 * updates["w"] + params["w"])
    assert float(tiny.angle) == pytest.approx(5e-7, rel=1e-6)


def test_bad_input():
    w = jnp.ones((2, 2))
    for bad, match in (
        ({"delta": 0.0}, "delta must be positive"),
        ({"wd_ratio": 1.5}, r"wd_ratio must be in \[0, 1\]"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"eps": 0.0}, "eps must be positive"),
    ):
        with pytest.raises(InputError, match=match):
            radial_projection(optax.identity(), **bad)
    with pytest.raises(InputError, match="b1 must be in"):
        adamp(1e-3, 1.0)
    with pytest.raises(InputError, match="momentum must be in"):
        sgdp(1e-3, 1.0)
    rule = radial_projection(optax.identity())
    with pytest.raises(InputError, match="needs params"):
        rule.update(w, rule.init(w))
    with pytest.raises(InputError, match=r"leaf deep/w: .* complex64"):
        rule.init({"deep": {"w": w + 1j}})
    with pytest.raises(InputError, match=r"leaf w: channel_axis 2 is out of range for shape \(2, 2\)"):
        radial_projection(optax.identity(), channel_axis=2).init({"w": w})
    with pytest.raises(InputError, match="channel_axis does not have the structure"):
        radial_projection(optax.identity(), channel_axis={"v": 0}).init({"w": w})
    injected = optax.inject_hyperparams(adamp)(1e-3)
    with pytest.raises(InputError, match="static_args"):
        injected.init({"w": w})
