"""Leapfrog and Yoshida's method against closed forms, and what they are for: bounded energy, time backwards."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.motion import FunctionLaw, Leapfrog, SecondOrder, Yoshida4, integrate

BOTH = [("leapfrog", Leapfrog(), 2), ("yoshida4", Yoshida4(), 4)]
SPRING = SecondOrder(lambda t, x, args: -4.0 * x)  # angular frequency 2
KEPLER = SecondOrder(lambda t, x, args: -x / jnp.linalg.norm(x) ** 3)


def at_rest(x):
    return {"x": jnp.asarray(x, float), "v": jnp.zeros_like(jnp.asarray(x, float))}


def ellipse(eccentricity):
    """At the pericentre of an orbit of semi-major axis 1: energy -1/2, period 2π."""
    e = eccentricity
    return {"x": jnp.array([1 - e, 0.0]), "v": jnp.array([0.0, np.sqrt((1 + e) / (1 - e))])}


def energy(state):
    return 0.5 * (state["v"] ** 2).sum(-1) - 1 / jnp.linalg.norm(state["x"], axis=-1)


@pytest.mark.parametrize("method,solver,order", BOTH)
def test_order(method, solver, order, x64):
    """A driven spring, x'' = -4x + 3 cos t with x = cos t: with its force in time, stages at wrong times would show."""
    law = SecondOrder(lambda t, x, args: -4.0 * x + 3.0 * jnp.cos(t))
    ts, errors = jnp.array([0.0, 0.7, 2.0]), []
    for dt in (0.05, 0.025):
        traj = integrate(law, at_rest(1.0), ts, method=method, dt=dt)
        errors.append(
            float(jnp.abs(traj.states["x"] - jnp.cos(ts)).max() + jnp.abs(traj.states["v"] + jnp.sin(ts)).max())
        )
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert errors[1] < {2: 1e-3, 4: 1e-6}[order]


def test_leapfrog_is_its_closed_form(x64):
    """On the spring the map is a rotation by arccos(1 - ω²h²/2): the numerical frequency is known exactly."""
    h, n = 0.3, 40
    traj = integrate(SPRING, at_rest(1.0), jnp.arange(n + 1) * h, method="leapfrog", dt=h)
    angle = np.arccos(1 - 4 * h**2 / 2)
    assert jnp.abs(traj.states["x"] - jnp.cos(angle * jnp.arange(n + 1))).max() < 1e-11


@pytest.mark.parametrize("method,solver,order", BOTH)
def test_energy_is_bounded_on_an_eccentric_orbit(method, solver, order, x64):
    """100 orbits of eccentricity 0.5, seen at all phases: the error of the energy stays. A plain method's grows."""
    ts = jnp.arange(271) * 2 * np.pi * 0.37

    def errors(method):
        states = integrate(KEPLER, ellipse(0.5), ts, method=method, dt=0.03).states
        error = jnp.abs(energy(states) + 0.5)
        return error[1:90].max(), error[-90:].max()

    first, last = errors(method)
    assert last < 1.1 * first and first < {2: 2e-3, 4: 2e-5}[order]
    if order == 2:
        first, last = errors("midpoint")
        assert last > 2 * first


@pytest.mark.parametrize("method,solver,order", BOTH)
def test_time_runs_back_to_rounding(method, solver, order, x64):
    ts = jnp.linspace(0, 20, 6)
    there = integrate(KEPLER, ellipse(0.3), ts, method=method, dt=0.1)
    back = integrate(KEPLER, jax.tree.map(lambda x: x[-1], there.states), ts[::-1], method=method, dt=0.1)
    for name in ("x", "v"):
        assert jnp.abs(back.states[name][::-1] - there.states[name]).max() < 1e-11
    bent = integrate(KEPLER, jax.tree.map(lambda x: x[-1], there.states), ts[::-1], method="midpoint", dt=0.1)
    assert jnp.abs(bent.states["x"][-1] - there.states["x"][0]).max() > 1e-3


@pytest.mark.parametrize("method,solver,order", BOTH)
def test_the_map_is_symplectic(method, solver, order, x64):
    """Jᵀ Ω J = Ω for the Jacobian J of the map of a nonlinear pendulum with a momentum that is not the velocity."""
    law = SecondOrder(lambda t, x, args: -jnp.sin(x), lambda t, p, args: p / 2.0)

    def flow(z):
        traj = integrate(law, {"x": z[:1], "v": z[1:]}, [0.0, 1.0], method=method, dt=0.25, adjoint="forward")
        return jnp.concatenate([traj.states["x"][-1], traj.states["v"][-1]])

    jacobian = jax.jacfwd(flow)(jnp.array([0.4, 1.1]))
    omega = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    assert jnp.abs(jacobian.T @ omega @ jacobian - omega).max() < 1e-12
    assert jnp.abs(jacobian - jnp.eye(2)).max() > 0.1


@pytest.mark.parametrize("solver,stable,unstable", [(Leapfrog(), 1.99, 2.01), (Yoshida4(), 1.57, 1.58)])
def test_limit_of_stability(solver, stable, unstable, x64):
    """Largest step on x'' = -x, as the docstrings say: the map's trace is within ±2 exactly if it is stable."""
    terms = diffrax.ODETerm(lambda t, v, args: v), diffrax.ODETerm(lambda t, x, args: -x)

    def trace(h):
        def step(x, v):
            y0 = (jnp.asarray(x), jnp.asarray(v))
            return solver.step(terms, 0.0, h, y0, None, solver.init(terms, 0.0, h, y0, None), False)[0]

        return step(1.0, 0.0)[0] + step(0.0, 1.0)[1]

    assert abs(trace(stable)) < 2 < abs(trace(unstable))


@pytest.mark.parametrize("method,solver,order", BOTH)
def test_in_diffeqsolve(method, solver, order, x64):
    """The solvers are Diffrax's in every way: any tree, dense output, constant steps, gradients."""
    terms = (
        diffrax.ODETerm(lambda t, v, args: v),
        diffrax.ODETerm(lambda t, x, args: jax.tree.map(lambda y: -args * y, x)),
    )

    def run(stiffness):
        start = ({"a": jnp.ones(2)}, {"a": jnp.zeros(2)})
        saveat = diffrax.SaveAt(t1=True, dense=True)
        return diffrax.diffeqsolve(terms, solver, 0.0, 2.0, 0.01, start, stiffness, saveat=saveat)

    solution = run(4.0)
    assert jnp.abs(solution.ys[0]["a"] - jnp.cos(4.0)).max() < 1e-3
    (x, v), close = solution.evaluate(1.2345), {2: 1e-3, 4: 1e-6}[order]
    assert jnp.abs(x["a"] - jnp.cos(2.469)).max() < close and jnp.abs(v["a"] + 2 * jnp.sin(2.469)).max() < close
    slope = jax.grad(lambda k: run(k).ys[0]["a"][0, 0])(4.0)  # d/dk cos(2 √k) = -sin(2 √k) / √k
    assert float(slope) == pytest.approx(-np.sin(4.0) / 2, abs=1e-3)


def test_one_force_a_step():
    """Leapfrog carries the force from step to step: the start, the step, and nothing more is traced."""
    seen = []

    def force(t, x, args):
        seen.append(1)
        return -x

    terms = diffrax.ODETerm(lambda t, v, args: v), diffrax.ODETerm(force)
    y0 = (jnp.ones(()), jnp.zeros(()))
    start = Leapfrog().init(terms, 0.0, 0.1, y0, None)
    assert len(seen) == 1
    jax.make_jaxpr(lambda s: Leapfrog().step(terms, 0.0, 0.1, y0, None, s, False))(start)
    assert len(seen) <= 3  # the branch for a jump is traced, not run
    _, _, _, carried, _ = Leapfrog().step(terms, 0.0, 0.1, y0, None, start, False)
    (x, _), *_ = Leapfrog().step(terms, 0.0, 0.1, y0, None, start, False)
    assert carried == -x


def test_a_jump_evaluates_the_force_again():
    terms = diffrax.ODETerm(lambda t, v, args: v), diffrax.ODETerm(lambda t, x, args: -x)
    y0 = (jnp.ones(()), jnp.zeros(()))
    stale = jnp.asarray(100.0)
    (x, _), *_ = Leapfrog().step(terms, 0.0, 0.1, y0, None, stale, jnp.asarray(True))
    assert float(x) == pytest.approx(1 - 0.1**2 / 2)


def test_a_law_of_ones_own():
    class Pendulum(eqx.Module):
        length: float

        def velocity(self, t, v, args):
            return v

        def acceleration(self, t, x, args):
            return -9.81 / self.length * jnp.sin(x)

        def drift(self, t, x, args):
            return {"x": x["v"], "v": self.acceleration(t, x["x"], args)}

    start = at_rest(0.3)
    ours = integrate(Pendulum(2.0), start, [0.0, 1.0], method="yoshida4", dt=0.01)
    theirs = integrate(Pendulum(2.0), start, [0.0, 1.0], rtol=1e-7, atol=1e-7)
    assert float(ours.states["x"][-1]) == pytest.approx(float(theirs.states["x"][-1]), abs=1e-5)


def test_what_is_refused():
    ts = jnp.array([0.0, 1.0])
    with pytest.raises(InputError, match="acceleration"):
        integrate(FunctionLaw(lambda t, x, args: x), at_rest(1.0), ts, method="leapfrog", dt=0.1)
    with pytest.raises(InputError, match=r"\['mass', 'v', 'x'\]"):
        law = SecondOrder(lambda t, x, args: -x)
        extra = eqx.tree_at(lambda law: law.acceleration, law, lambda t, x, args: -x)
        integrate(_Extra(extra), {**at_rest(1.0), "mass": jnp.ones(())}, ts, method="leapfrog", dt=0.1)
    with pytest.raises(InputError, match="give dt"):
        integrate(SPRING, at_rest(1.0), ts, method="yoshida4")
    with pytest.raises(InputError, match="one term"):
        integrate(SPRING, at_rest(1.0), ts, method="yoshida4", dt=0.1, adjoint="backsolve")


class _Extra(eqx.Module):
    inner: SecondOrder

    def drift(self, t, x, args):
        return x

    def velocity(self, t, v, args):
        return v

    def acceleration(self, t, x, args):
        return x
