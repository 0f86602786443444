"""The reversible adjoint: the gradient of the discrete solve to rounding, steps undone exactly, bad input refused."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.motion import BrownianPath, FunctionLaw, Reversible, ReversibleAdjoint, SecondOrder, dissipation, integrate

TS, DT = np.array([0.0, 0.5, 1.5]), 1 / 16  # exact in binary: another rounding of a time is another Brownian path


class Turning(eqx.Module):
    """A small nonlinear law with parameters; noise depends on the state."""

    weight: jax.Array
    noise: float | None = None
    calculus: str = eqx.field(default="stratonovich", static=True)

    def drift(self, t, x, args):
        return jnp.tanh(self.weight @ x) + args * jnp.sin(t)

    @property
    def diffusion(self):
        return None if self.noise is None else lambda t, x, args: self.noise * jnp.cos(x)


class Coupled(eqx.Module):
    """The wrapped midpoint rule, written out: the same frames by a scan that stores every step."""

    coupling: float = 0.9

    def frames(self, law, x0, args, increments):
        def moved(t, x, h):
            return h * law.drift(t + h / 2, x + h / 2 * law.drift(t, x, args), args)

        def step(pair, row):
            (y, z), (t, h, _) = pair, row
            y = self.coupling * y + (1 - self.coupling) * z + moved(t, z, h)
            return (y, z - moved(t + h, y, -h)), y

        return jax.lax.scan(step, (x0, x0), increments)[1]


class Heun(eqx.Module):
    """Reversible Heun, written out."""

    def frames(self, law, x0, args, increments):
        def change(t, x, h, dw):
            return law.drift(t, x, args) * h + law.diffusion(t, x, args) * dw

        def step(pair, row):
            (y, ahead), (t, h, dw) = pair, row
            after = 2 * y - ahead + change(t, ahead, h, dw)
            y = y + (change(t, ahead, h, dw) + change(t + h, after, h, dw)) / 2
            return (y, after), y

        return jax.lax.scan(step, (x0, x0), increments)[1]


def weighed(frames):
    return jnp.sum(jnp.array([[1.0], [-2.0], [3.0]]) * frames**2)


def solved(model, method, key=None):
    law, x0, args = model
    how = {"method": method, "dt": DT, "args": args, "key": key, "adjoint": ReversibleAdjoint()}
    return weighed(integrate(law, x0, TS, **how).states)


def stored(model, method, increments):
    law, x0, args = model
    frames = method.frames(law, x0, args, increments)
    return weighed(jnp.stack([x0, frames[7], frames[23]]))


def test_gradient_is_that_of_the_discrete_solve(key, x64):
    """In the law, the start and the arguments, to rounding."""
    law = Turning(jnp.array([[0.3, 1.2], [-1.0, 0.1]]))
    noisy, start, args = Turning(law.weight, 0.3), jnp.array([1.0, -0.5]), jnp.array(0.4)
    times = DT * jnp.arange(25)
    rows = (times[:-1], jnp.diff(times), BrownianPath.of_solve(start, TS, DT, key=key).increments(times))
    for quiet_or_not, method, written, noise in (
        (law, Reversible(coupling=0.9), Coupled(), None),
        (noisy, "reversible_heun", Heun(), key),
    ):
        model = (quiet_or_not, start, args)
        first, got = eqx.filter_jit(eqx.filter_value_and_grad(solved))(model, method, noise)
        second, want = eqx.filter_jit(eqx.filter_value_and_grad(stored))(model, written, rows)
        assert jnp.abs(first - second) < 1e-12
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            assert jnp.abs(a - b).max() <= 1e-12 * jnp.abs(a).max()


def test_symplectic_steps_are_undone_too(x64):
    """x'' = -k x by leapfrog is a power of a matrix; the derivative of its end in k by central differences."""
    spring = SecondOrder(jax.tree_util.Partial(lambda k, t, x, args: -k * x, jnp.array(2.0)))

    def end(law, adjoint):
        how = {"method": "leapfrog", "dt": 0.1, "adjoint": adjoint}
        return integrate(law, {"x": jnp.ones(1), "v": jnp.zeros(1)}, [0.0, 1.0], **how).states["x"][-1, 0]

    def power(k):
        kick, move = np.array([[1, 0], [-0.05 * k, 1]]), np.array([[1, 0.1], [0, 1]])
        return (np.linalg.matrix_power(kick @ move @ kick, 10) @ [1.0, 0.0])[0]

    slope = jax.tree.leaves(eqx.filter_grad(end)(spring, ReversibleAdjoint()))[0]
    assert slope == pytest.approx((power(2 + 1e-5) - power(2 - 1e-5)) / 2e-5, rel=1e-8)


def test_wrapped_method_keeps_its_order(x64):
    """Rotation by one radian in a unit of time: error against (cos, -sin), slope 2 for midpoint, backwards too."""
    law = FunctionLaw(lambda t, x, args: jnp.array([x[1], -x[0]]))
    errors = []
    for dt in (0.1, 0.025):
        end = integrate(law, jnp.array([1.0, 0.0]), [0.0, -1.0], method=Reversible(), dt=dt).states[-1]
        errors.append(jnp.abs(end - jnp.array([jnp.cos(1.0), jnp.sin(1.0)])).max())
    assert jnp.log2(errors[0] / errors[1]) / 2 == pytest.approx(2.0, abs=0.2)


def test_damped_laws_are_told_and_refused(x64):
    """Two damped rates and a fast rotation: the most negative real part is -3."""
    mix = jnp.array([[-3.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, -2.0, 0.0]])
    law = FunctionLaw(lambda t, x, args: mix @ x)
    assert dissipation(law, jnp.ones(4), [0.0, 2.0]) == pytest.approx(6.0, rel=1e-3)
    with pytest.warns(UserWarning, match="above 20"):
        dissipation(law, jnp.ones(4), [0.0, 20.0])


def test_a_start_that_is_missed_is_an_error():
    """Damping by 2^-24 loses all digits of float32 on the way back."""
    damped = FunctionLaw(jax.tree_util.Partial(lambda rate, t, x, args: -rate * x, jnp.array(16.0)))
    with pytest.raises(RuntimeError, match="missed x0"):
        jax.block_until_ready(eqx.filter_jit(eqx.filter_grad(solved))((damped, jnp.ones(2), None), Reversible()))


def test_what_cannot_be_undone_is_refused():
    law = FunctionLaw(lambda t, x, args: -x)

    def run(match, **how):
        with pytest.raises(InputError, match=match):
            integrate(law, jnp.ones(2), [0.0, 1.0], adjoint="reversible", **how)

    run("fixed steps")
    run("not reversible", method="heun", dt=0.1)
    run("no dense output", method="reversible_heun", dt=0.1, dense=True)
    with pytest.raises(InputError, match="implicit steps"):
        Reversible(diffrax.Kvaerno5())
    with pytest.raises(InputError, match="coupling"):
        Reversible(coupling=1.5)


def test_parameters_in_a_closure_are_refused():
    """Never a gradient of zero in silence."""

    def loss(rate):
        law = FunctionLaw(lambda t, x, args: -rate * x)
        return integrate(
            law, jnp.ones(1), [0.0, 1.0], method="reversible_heun", dt=0.5, adjoint="reversible"
        ).states.sum()

    with pytest.raises(Exception, match=r"(?i)closed|closure|leak|tracer|nondifferentiable|custom_vjp"):
        jax.grad(loss)(1.0)


def test_brownian_paths(key):
    """Cov(W(s), W(t)) = min(s, t), and the order of queries does not matter. (That one drives a solve: see above.)"""
    times = jnp.array([1.5, 0.4])
    run = jax.jit(jax.vmap(lambda k, ts: BrownianPath(0.0, 2.0, 0.0, key=k, resolution=0.05)(ts), in_axes=(0, None)))
    w = run(jr.split(key, 4000), times)
    assert jnp.array_equal(w, run(jr.split(key, 4000), times[::-1])[:, ::-1])
    truth = jnp.array([[1.5, 0.4], [0.4, 0.4]])
    spread = jnp.sqrt((truth**2 + jnp.outer(jnp.diag(truth), jnp.diag(truth))) / len(w))
    assert jnp.all(jnp.abs(w.T @ w / len(w) - truth) < 4 * spread)
    with pytest.raises(InputError, match="end must be after start"):
        BrownianPath(1.0, 1.0, 0.0, key=key)
    with pytest.raises(InputError, match="within"):
        BrownianPath(0.0, 1.0, 0.0, key=key)(2.0)
    with pytest.raises(InputError, match="resolution"):
        BrownianPath(0.0, 1.0, 0.0, key=key, resolution=-1.0)
