"""The engine against closed forms and against an independent loop in float64."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpy_balls
import pytest

from kinema import simulate
from kinema.simulate import ball_events
from kinema.simulate.ball_events import Bodies, Rules
from kinema.simulate.balls import Balls

ENGINE = jax.jit(ball_events.run, static_argnums=0)


def balls(radius, mass=None, size=(8.0, 8.0), gravity=0.0, walls=False, max_events=20):
    """A world of given bodies; its start is not used."""
    radius = jnp.asarray(radius, float)
    mass = jnp.ones_like(radius) if mass is None else jnp.asarray(mass, float)
    return Balls(
        radius=radius,
        mass=mass,
        size=jnp.asarray(size, float),
        gravity=jnp.asarray(gravity, float),
        start=simulate.Gas(),
        frames=2,
        dt=1000.0,
        max_events=max_events,
        walls=walls,
        falls=gravity != 0,
    )


def state(x, v):
    return {"x": jnp.asarray(x, float), "v": jnp.asarray(v, float)}


def gas(n, radius, worlds):
    """Random states (worlds, n, 2) in the unit box at unit rms speed, without overlap."""
    rng, placed = np.random.default_rng(n), []
    while len(placed) < worlds:
        x = rng.uniform(radius, 1 - radius, (n, 2))
        distance = np.linalg.norm(x[:, None] - x, axis=-1) + 4 * radius * np.eye(n)
        if distance.min() > 2 * radius:
            placed.append(x)
    v = rng.normal(size=(worlds, n, 2))
    return np.array(placed), v * np.sqrt(n / (v**2).sum((1, 2), keepdims=True))


def run(world, gaps, x, v, max_events):
    """The engine on states (worlds, n, 2)."""
    columns = (world.radius[:, None], world.mass[:, None], world.size[:, None], world.gravity[None])
    rules = Rules(world.walls, world.falls, max_events)
    return ENGINE(rules, Bodies(*columns), jnp.asarray(gaps), *(jnp.asarray(a).T for a in (x, v)))


def test_head_on_hit_exchanges_momentum_exactly():
    world = balls([0.5, 0.5], mass=[1.0, 3.0])
    out = world.replay(state([[1, 4], [4, 4]], [[1, 0], [-1, 0]]), [1.0, 2.0])
    assert np.array_equal(out.states["v"][1], [[-2, 0], [0, 0]])
    assert np.array_equal(out.states["x"][1], [[0, 4], [3, 4]])
    assert int(out.hits) == int(out.pair_hits) == 1


def test_a_frame_at_the_instant_of_a_hit_shows_the_state_before_it():
    world = balls([0.5, 0.5])
    out = world.replay(state([[1, 4], [4, 4]], [[1, 0], [-1, 0]]), [1.0, 1.25])
    assert np.array_equal(out.states["v"][0], [[1, 0], [-1, 0]])
    assert np.array_equal(out.states["v"][1], [[-1, 0], [1, 0]])


@pytest.mark.parametrize("far", [2.0, 100.0])
def test_grazing_hit_has_the_closed_form_angle(far):
    s = np.float32(1.0)
    offset = np.float32(s * (1 - 1e-4))
    world = balls([0.5, 0.5], size=(400.0, 8.0))
    start = state([[1, 4], [1 + far, 4 + offset]], [[0.5, 0], [-0.5, 0]])
    out = world.replay(start, [2 * far])
    rise = float(start["x"][1, 1]) - 4
    normal = np.array([np.sqrt(1 - rise**2), rise])
    before = np.array([-1.0, 0.0])
    after = before - 2 * (before @ normal) * normal
    v = np.asarray(out.states["v"][0], np.float64)
    assert int(out.hits) == 1
    np.testing.assert_allclose((v[1] - v[0])[1] / after[1], 1, rtol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(v[1] - v[0]), 1, rtol=1e-6)


def test_grazing_miss():
    world = balls([0.5, 0.5], size=(400.0, 8.0))
    start = state([[1, 4], [101, 5.0001]], [[0.5, 0], [-0.5, 0]])
    out = world.replay(start, [200.0])
    assert int(out.hits) == 0 and np.array_equal(out.states["v"][0], start["v"])


def test_corner_returns_along_the_line():
    world = balls([0.25], size=(2.0, 2.0), walls=True)
    out = world.replay(state([[1.0, 1.0]], [[0.5, 0.5]]), [3.0])
    assert int(out.hits) == 2
    assert np.array_equal(out.states["v"][0], [[-0.5, -0.5]]) and np.array_equal(out.states["x"][0], [[1.0, 1.0]])


def test_newtons_cradle():
    world = balls([0.25] * 4)
    x = [[1.0, 1.0], [2.0, 1.0], [2.5, 1.0], [3.0, 1.0]]
    out = world.replay(state(x, [[1.0, 0.0], [0, 0], [0, 0], [0, 0]]), [2.5])
    assert int(out.hits) == 3
    assert np.array_equal(out.states["v"][0], [[0, 0], [0, 0], [0, 0], [1, 0]])
    assert np.array_equal(out.states["x"][0, 3], [5.0, 1.0])


def test_bouncing_ball_returns_to_its_height():
    """Dropped from h: period 2 sqrt(2 h / g)."""
    world = balls([0.5], size=(8.0, 8.0), gravity=2.0, walls=True)
    period = 2 * np.sqrt(2 * 4.0 / 2.0)
    out = world.replay(state([[4.0, 4.5]], [[0.0, 0.0]]), [period / 2 - 0.1, period, 3 * period])
    np.testing.assert_allclose(out.states["v"][0, 0, 1], -2.0 * (period / 2 - 0.1), rtol=1e-6)
    np.testing.assert_allclose(out.states["x"][1:, 0, 1], 4.5, atol=1e-5)
    assert int(out.hits) == 3


@pytest.mark.parametrize(("speed", "hits"), [(3.99, 0), (4.01, 1)])
def test_ceiling_is_hit_only_by_what_reaches_it(speed, hits):
    """A rise of 4 against g = 2 needs v = 4."""
    world = balls([0.5], size=(8.0, 8.0), gravity=2.0, walls=True)
    assert int(world.replay(state([[4.0, 3.5]], [[0.0, speed]]), [2.5]).hits) == hits


@pytest.mark.parametrize(("n", "worlds", "gravity"), [(2, 40, 0.0), (4, 12, 1.5)])
def test_agrees_with_an_independent_loop(x64, n, worlds, gravity):
    mass, radius = np.arange(1.0, n + 1), np.full(n, 0.12)
    world = balls(radius, mass, size=(1.0, 1.0), gravity=gravity, walls=True)
    x, v = gas(n, 0.12, worlds)
    out = run(world, np.full(32, 0.1), x, v, 400)
    for i in range(worlds):
        xs, vs, hits = numpy_balls.run(x[i], v[i], radius, mass, np.ones(2), gravity, 0.1 * np.arange(1, 33))
        assert hits == int(out.wall_hits[i] + out.pair_hits[i])
        np.testing.assert_allclose(out.x[i, :10], xs[:10], atol=1e-9)
        np.testing.assert_allclose(out.v[i, :10], vs[:10], atol=1e-9)


@pytest.mark.parametrize(("n", "gravity", "rate"), [(1, 2.0, 1.8), (2, 0.0, 4.4), (8, 0.0, 25.0)])
def test_a_thousand_hits_in_float32_keep_energy_and_never_overlap(n, gravity, rate):
    radius = 0.12 if n < 8 else 0.07
    world = balls(np.full(n, radius), size=(1.0, 1.0), gravity=gravity, walls=True)
    x, v = (a.astype(np.float32) for a in gas(n, radius, 1024 if n < 8 else 128))
    if gravity:
        x[..., 1] = 0.5 + x[..., 1] / 4  # what starts near the floor may bounce low, and hit without end
    out = run(world, np.full(20, 1000 / rate / 20, np.float32), x, v, 10**4)
    assert 800 < float(jnp.median(out.wall_hits + out.pair_hits)) < 1300

    def energy(x, v):
        return (world.mass * ((v**2).sum(-1) / 2 + world.gravity * x[..., 1])).sum(-1)

    drift = float(jnp.abs(energy(out.x, out.v) / energy(x, v)[:, None] - 1).max())
    assert bool(out.done.all()) and drift <= (1e-5 if gravity else 1e-6)  # without the feedback: 3e-6, 5e-6
    contacts = jax.vmap(jax.vmap(lambda x: world.contacts({"x": x, "v": x})))(out.x)
    assert float(contacts.walls.min()) >= -2e-7 and float(contacts.pairs.min()) >= -2e-7


def test_ten_thousand_frames_lose_no_time():
    """A free ball in its box is a triangle wave, known in float64 at any time."""
    gap, speed, radius = np.float32(0.1), np.float32(0.7), np.float32(0.125)
    world = balls([radius], size=(1.0, 1.0), walls=True)
    out = run(world, np.full(10_000, gap), np.full((1, 1, 2), 0.5, np.float32), np.array([[[speed, 0]]]), 2000)
    room, t = 1 - 2 * float(radius), np.arange(1, 10_001) * float(gap)
    phase = np.mod(0.5 - float(radius) + float(speed) * t, 2 * room)
    truth = float(radius) + np.minimum(phase, 2 * room - phase)
    assert bool(out.done[0])
    np.testing.assert_allclose(out.x[0, :, 0, 0], truth, atol=1e-4)
    assert float(jnp.abs(jnp.abs(out.v[0, :, 0, 0]) - speed).max()) == 0


def test_gradient_is_the_central_difference(x64):
    """Walls, floor and a pair hit on the way; the order of hits does not change."""
    world = balls([0.1, 0.2], mass=[1.0, 2.0], size=(1.0, 1.2), gravity=0.8, walls=True)
    start = state([[0.3, 0.45], [0.7, 0.5]], [[0.9, -0.5], [-0.6, -0.3]])
    weights = jr.normal(jr.key(1), (2, 2, 2))

    def value(start):
        out = world.replay(start, [0.9])
        return (weights[0] * out.states["x"][0]).sum() + (weights[1] * out.states["v"][0]).sum()

    grad = jax.jit(jax.grad(value))
    found = grad(start)
    kinds = {event.kind for event in world.events(start, 0.9)}
    assert {"pair", "floor"} <= kinds and kinds & {"left", "right"}
    plain = jax.jit(value)
    for name in ("x", "v"):
        for index in np.ndindex(2, 2):
            step = jnp.zeros((2, 2)).at[index].set(1e-6)
            up, down = (plain(start | {name: start[name] + sign * step}) for sign in (1, -1))
            np.testing.assert_allclose(found[name][index], (up - down) / 2e-6, rtol=2e-6, atol=1e-7)
    # the same speed, one above the other at the floor: no root or quotient of zero reaches the derivative
    still = state([[0.3, 0.1], [0.7, 0.6]], [[0.0, 0.0], [0.0, 0.0]])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grad(still)))


def test_worlds_may_differ_and_vmap_is_a_loop(key):
    """Constants of each world are mapped too, through two levels of vmap."""
    radius = jr.uniform(key, (2, 3), minval=0.05, maxval=0.15)
    start = state([[0.3, 0.3], [0.7, 0.6]], [[0.9, 0.4], [-0.3, 0.2]])

    def one(radius):
        world = simulate.collisions(radius=radius, max_events=60)
        return world.replay(start, world.ts)

    mapped = jax.jit(jax.vmap(jax.vmap(one)))(radius)
    single = jax.jit(one)
    for index in np.ndindex(2, 3):
        alone = single(radius[index])
        for x, y in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone)):
            np.testing.assert_allclose(x[index], y, atol=1e-5)
