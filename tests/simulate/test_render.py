"""Pixels and their inverse: areas in closed form, and states read back."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema import simulate
from kinema.errors import InputError
from kinema.simulate import render

RED_BLUE = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
SIZE = jnp.array([10.0, 10.0])


def coverage(x, radius, shape="disc", pixels=64):
    """Of one black body on white."""
    picture = simulate.draw(
        jnp.asarray([x], float),
        jnp.asarray([radius]),
        size=SIZE,
        pixels=pixels,
        colours=[(0, 0, 0)],
        shapes=shape,
    )
    return 1 - np.asarray(picture[..., 0], np.float64)


def test_examples():
    assert doctest.testmod(render, extraglobs={"jax": jax}).failed == 0


@pytest.mark.parametrize("centre", [(5.0, 5.0), (4.93, 5.21), (3.333, 6.1)])
def test_area_is_closed_form(centre):
    """A disc has pi (r^2 + h^2 / 12), a square (2 r)^2."""
    h = 10 / 64
    disc, square = coverage(centre, 1.3), coverage(centre, 1.3, "square")
    np.testing.assert_allclose(disc.sum() * h**2, np.pi * (1.3**2 + h**2 / 12), rtol=2e-3)
    np.testing.assert_allclose(square.sum() * h**2, 2.6**2, rtol=1e-5)


def test_up_is_up_and_right_is_right():
    rows, columns = np.nonzero(coverage((8.0, 9.0), 0.5) > 0.5)
    assert rows.max() < 12 and columns.min() > 44


def test_states_are_read_back(key):
    """Two balls that meet: centres to a fiftieth of a pixel rms, velocities of the parsed truth to 1%."""
    world = simulate.head_on(radius=(1.0, 0.7))
    traj = world.simulate(24, key=key)
    film = jax.jit(jax.vmap(jax.vmap(lambda s: world.render(s, pixels=(64, 64), colours=RED_BLUE))))(traj.states)
    state, seen = simulate.parse(film, RED_BLUE, 0.1, width=10.0)
    x, radius = np.asarray(traj.states["x"]), np.array([1.0, 0.7])
    inside = ((x >= radius[:, None]) & (x <= 10 - radius[:, None])).all(-1)
    assert (np.asarray(seen) == inside).mean() > 0.995
    both = np.asarray(seen) & inside
    error = np.abs(np.asarray(state["x"]) - x)[both]
    assert np.sqrt((error**2).mean()) < 2e-3 and error.max() < 1e-2
    assert np.abs(np.asarray(state["radius"]) - radius)[both].max() < 5e-3
    assert float(jnp.abs(state["x"] * ~seen[..., None]).max()) == 0


def test_velocity_of_a_thrown_ball_is_central(key):
    """Central differences are exact for a parabola."""
    world = simulate.parabola(radius=0.8)
    traj = world.simulate(8, key=key)
    film = jax.jit(jax.vmap(jax.vmap(lambda s: world.render(s, pixels=(64, 64)))))(traj.states)
    state, seen = simulate.parse(film, [render.PALETTE[0]], 0.1, width=10.0)
    whole = np.asarray(seen[:, :-2] & seen[:, 1:-1] & seen[:, 2:])
    gap = np.abs(np.asarray(state["v"] - traj.states["v"])[:, 1:-1])[whole]
    assert gap.mean() < 0.02 and gap.max() < 0.1


def test_squares_are_read_back():
    h, radius = 10 / 64, jnp.array([0.9])
    film = jnp.stack([simulate.draw(jnp.array([[x, 4.1]]), radius, size=SIZE, shapes="square") for x in (3.0, 3.37)])
    state, seen = simulate.parse(film, [render.PALETTE[0]], 0.1, width=10.0, shapes="square")
    assert bool(seen.all())
    np.testing.assert_allclose(state["x"][:, 0], [[3.0, 4.1], [3.37, 4.1]], atol=h / 50)
    np.testing.assert_allclose(state["radius"], 0.9, atol=1e-3)
    np.testing.assert_allclose(state["v"][:, 0, 0], 3.7, atol=0.05)


@pytest.mark.parametrize(("x", "there"), [(1.0, True), (0.9, False), (0.0, False), (-0.9, False), (-5.0, False)])
def test_a_ball_that_is_cut_is_absent(x, there):
    film = jnp.stack([simulate.draw(jnp.array([[x, 5.0]]), jnp.array([1.0]), size=SIZE)] * 2)
    state, seen = simulate.parse(film, [render.PALETTE[0]], 0.1, width=10.0)
    assert bool(seen.all()) == there == bool(seen.any())
    assert there or float(jnp.abs(state["x"]).max()) == 0


def test_pictures_of_a_box_that_is_not_square():
    picture = simulate.draw(jnp.array([[1.0, 0.5]]), jnp.array([0.3]), size=jnp.array([2.0, 1.0]), pixels=32)
    assert picture.shape == (16, 32, 3)


def test_compiled_pictures_are_the_same():
    """A box whose size is known keeps its shape inside `jit` and `vmap`."""
    world = simulate.collisions(size=(2.0, 1.0))
    x = jnp.array([[[0.5, 0.5], [1.2, 0.4]], [[0.4, 0.6], [1.5, 0.5]]])
    film = jax.jit(jax.vmap(lambda x: world.render({"x": x}, pixels=32)))(x)
    assert film.shape == (2, 16, 32, 3)
    np.testing.assert_allclose(film[1], world.render({"x": x[1]}, pixels=32), atol=1e-5)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: coverage((5, 5), 1.0, shape="disk"), "did you mean 'disc'"),
        (lambda: coverage((5, 5), 1.0, pixels=0), "pixels must be a positive integer"),
        (lambda: simulate.draw(jnp.ones((2, 2)), jnp.ones(2), size=SIZE, colours=[(0, 0, 0)]), r"shape \(2, 3\)"),
        (lambda: simulate.draw(jnp.ones((1, 2)), jnp.ones(1), size=SIZE, colours=[(0, 0, 255)]), "between 0 and 1"),
        (lambda: simulate.parse(jnp.ones((2, 8, 8, 3)), [(1, 0, 0), (1, 0.5, 0.5)], 0.1), "linearly independent"),
        (lambda: simulate.parse(jnp.ones((2, 8, 8, 3)), [(1, 1, 1)], 0.1), "linearly independent"),
        (lambda: simulate.parse(jnp.ones((1, 8, 8, 3)), [(1, 0, 0)], 0.1), "2 or more frames"),
        (lambda: simulate.parse(jnp.ones((2, 8, 8, 3)), [(1, 0, 0)], 0.0), "dt and width must be positive"),
        (lambda: jax.jit(lambda s: simulate.draw(jnp.ones((1, 2)), jnp.ones(1), size=s))(jnp.ones(2)), "traced"),
    ],
)
def test_refuses(act, says):
    with pytest.raises(InputError, match=says):
        act()
