"""The interface, on a world with a closed form and no code of its own but a law."""

import doctest

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import simulate
from kinema.errors import InputError
from kinema.motion import Invariant, SecondOrder
from kinema.simulate import Origin, World


class Oscillator(World):
    """x'' = -rate^2 x."""

    rate: float = 2.0
    frames: int = eqx.field(default=9, static=True)
    dt: float = eqx.field(default=0.25, static=True)
    origin: Origin = eqx.field(default=Origin("oscillator"), static=True)

    @property
    def units(self):
        return {"t": "s", "x": "m", "v": "m/s"}

    @property
    def invariants(self):
        return {"energy": Invariant(lambda s: 0.5 * (s["v"] ** 2 + (self.rate * s["x"]) ** 2), "J/kg", 1e-5)}

    @property
    def law(self):
        return SecondOrder(lambda t, x, args: -(self.rate**2) * x)

    def init(self, key):
        x, v = jr.normal(key, (2,))
        return {"x": x, "v": v}


def test_examples():
    names = {"jr": jr, "make": simulate.make}
    assert doctest.testmod(simulate.world.__globals__["inspect"].getmodule(World), extraglobs=names).failed == 0


@pytest.mark.parametrize("ts", [[0.0, 0.4, 1.1], [-1.3, -0.2, 0.0, 0.5], [-0.7], [0.6]])
def test_default_flow_integrates_the_law_both_ways(x64, ts):
    x0, v0, rate = 0.3, -0.8, 2.0
    out = Oscillator(rate).flow({"x": jnp.asarray(x0), "v": jnp.asarray(v0)}, ts)
    t = np.asarray(ts)
    np.testing.assert_allclose(out["x"], x0 * np.cos(rate * t) + v0 / rate * np.sin(rate * t), atol=1e-5)
    np.testing.assert_allclose(out["v"], v0 * np.cos(rate * t) - x0 * rate * np.sin(rate * t), atol=1e-5)


def test_simulate_is_an_ensemble_from_init(key):
    world = Oscillator()
    traj = world.simulate(5, key=key)
    assert traj.ensemble == 5 and traj.states["x"].shape == (5, 9) and traj.meta["world"] == "oscillator"
    assert int(traj.constants["hits"].max()) == 0
    start = jax.vmap(world.init)(jr.split(key, 5))
    angle = 2.0 * np.asarray(traj.ts)
    truth = start["x"][:, None] * np.cos(angle) + start["v"][:, None] / 2 * np.sin(angle)
    np.testing.assert_allclose(traj.states["x"], truth, atol=1e-4)


def test_defaults_are_a_world_without_contacts():
    world, state = Oscillator(), {"x": jnp.asarray(1.0), "v": jnp.asarray(0.0)}
    assert world.retract(state) is state and world.contacts(state) is None and world.constants == {}
    with pytest.raises(InputError, match="cannot be drawn"):
        world.render(state)


def test_worlds_are_made_by_name():
    assert {"collisions", "uniform_motion", "parabola"} <= set(simulate.worlds())
    world = simulate.make("collisions", balls=3, size=[2.0, 1.0])
    assert world.name == "collisions" and world.radius.shape == (3,) and world.size.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"did you mean 'collisions'\?"):
        simulate.make("colisions")
    with pytest.raises(InputError, match=r"did you mean 'balls'\?"):
        simulate.make("collisions", ball=3)
    with pytest.raises(InputError, match="registered already"):
        simulate.world("collisions")(simulate.collisions)


def test_origin_makes_the_world_again():
    import json

    world = simulate.collisions(3, mass=np.array([1.0, 2.0, 3.0]), energy=(0.5, 1.0))
    again = simulate.make(world.origin.name, **json.loads(world.origin.parameters))
    assert again.origin == world.origin and again.start == world.start
    assert np.array_equal(again.mass, world.mass)
