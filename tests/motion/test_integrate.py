"""`integrate` against closed forms: decay, rotation, Kepler, Ornstein-Uhlenbeck, geometric Brownian motion."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import BudgetExhausted, InputError, NotFinite
from kinema.motion import ADJOINTS, METHODS, EvenSteps, FunctionLaw, Law, SecondOrder, integrate
from kinema.motion.methods import NOISE_ONLY

ORDINARY = [name for name in METHODS if name not in NOISE_ONLY and name not in ("leapfrog", "yoshida4")]
ORDERS = {
    "tsit5": 5, "dopri5": 5, "dopri8": 8, "bosh3": 3, "kvaerno3": 3, "kvaerno5": 5, "implicit_euler": 1, "euler": 1,
    "heun": 2, "midpoint": 2, "ralston": 2, "reversible_heun": 2,
}  # fmt: skip
STRATONOVICH = ["heun", "euler_heun", "stratonovich_milstein", "slow_rk", "spark", "general_shark", "reversible_heun"]
ADDITIVE = [*NOISE_ONLY, "heun", "midpoint", "ralston", "reversible_heun"]


def turn(t, x, args):
    """Rotation by one radian in a unit of time, clockwise: x(t) = (cos t, -sin t) from (1, 0)."""
    return jnp.array([x[1], -x[0]])


def decay(t, x, args):
    return jax.tree.map(lambda y: -y, x)


class OrnsteinUhlenbeck(eqx.Module):
    mean: jax.Array
    rate: float
    noise: float

    def drift(self, t, x, args):
        return -self.rate * (x - self.mean)

    def diffusion(self, t, x, args):
        return jnp.full_like(x, self.noise)


class Geometric(eqx.Module):
    """dx = growth x dt + noise x dW: E x = e^(growth t), as Stratonovich e^((growth + noise²/2) t)."""

    growth: float
    noise: float
    calculus: str = eqx.field(default="ito", static=True)

    def drift(self, t, x, args):
        return self.growth * x

    def diffusion(self, t, x, args):
        return self.noise * x


# -- ordinary laws


def test_rotation_is_followed_at_every_frame(x64):
    ts = jnp.array([0.0, 0.3, 1.0, 1.1, 4.0])
    traj = integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), ts, rtol=1e-10, atol=1e-10)
    truth = jnp.stack([jnp.cos(ts), -jnp.sin(ts)], axis=1)
    assert jnp.abs(traj.states - truth).max() < 1e-8
    assert len(traj) == 5 and traj.ensemble is None and traj.meta == {"method": "tsit5"}
    assert 10 < int(traj.constants["steps"]) < 200


@pytest.mark.parametrize("method", ORDINARY)
def test_order(method, x64):
    """The error of a fixed step falls with the order of the method, at frames that do not divide by the step."""
    ts = jnp.array([0.0, 0.7, 1.0])
    law = FunctionLaw(lambda t, x, args: jnp.array([x[1], -x[0]]) * (1 + t))  # angle t + t²/2
    truth = jnp.array([jnp.cos(1.5), -jnp.sin(1.5)])
    coarse, fine = (0.25, 0.125) if ORDERS[method] > 3 else (0.05, 0.025)
    errors = []
    for dt in (coarse, fine):
        end = integrate(law, jnp.array([1.0, 0.0]), ts, method=method, dt=dt, rtol=1e-12, atol=1e-12).states[-1]
        errors.append(float(jnp.linalg.norm(end - truth)))
    slope = np.log2(errors[0] / errors[1])
    assert slope > ORDERS[method] - 0.3, errors


@pytest.mark.parametrize("method", ORDINARY)
def test_any_tree_and_dtype(method):
    x0 = {"a": jnp.ones((2, 3)), "b": (jnp.ones(()),)}
    traj = integrate(FunctionLaw(decay), x0, jnp.linspace(0, 1, 3), method=method, dt=0.01)
    assert jax.tree.structure(traj.states) == jax.tree.structure(x0)
    assert traj.states["a"].shape == (3, 2, 3) and traj.states["a"].dtype == jnp.float32
    assert jnp.abs(traj.states["b"][0] - jnp.exp(-traj.ts)).max() < 3e-3


def test_backwards_undoes_forwards(x64):
    ts = jnp.linspace(0.0, 2.0, 5)
    there = integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), ts, rtol=1e-9, atol=1e-9)
    back = integrate(FunctionLaw(turn), there.states[-1], ts[::-1], rtol=1e-9, atol=1e-9)
    assert jnp.abs(back.states[::-1] - there.states).max() < 1e-7
    assert jnp.all(back.ts == ts[::-1])
    fixed = integrate(FunctionLaw(turn), there.states[-1], ts[::-1], method="dopri8", dt=0.1)
    assert jnp.abs(fixed.states[-1] - there.states[0]).max() < 1e-7


def test_time_and_args_reach_the_law(x64):
    law = FunctionLaw(lambda t, x, args: args["slope"] * t)  # x = slope (t² - 1) / 2 from t = 1
    traj = integrate(law, jnp.zeros(()), jnp.array([1.0, 3.0]), args={"slope": jnp.array(0.5)})
    assert traj.states[-1] == pytest.approx(2.0, abs=1e-6)


def test_stiff_law_needs_and_gets_an_implicit_method():
    law = FunctionLaw(lambda t, x, args: -2000.0 * (x - jnp.cos(t)))
    ts = jnp.array([0.0, 2.0])
    with pytest.raises(BudgetExhausted, match="max_steps=300.*kvaerno5"):
        integrate(law, jnp.ones(1), ts, max_steps=300)
    traj = integrate(law, jnp.ones(1), ts, method="kvaerno5", max_steps=300, rtol=1e-4, atol=1e-4)
    assert traj.states[-1, 0] == pytest.approx(np.cos(2.0), abs=2e-3)


def test_fixed_steps_land_on_frames_exactly(x64):
    """Euler on dx = x: the product of (1 + h) over the very steps, so no step was cut, moved or interpolated."""
    ts = jnp.array([0.0, 0.3, 0.4, 1.0])
    traj = integrate(FunctionLaw(lambda t, x, args: x), jnp.ones(()), ts, method="euler", dt=0.16)
    growth = [1.0, (1 + 0.15) ** 2, (1 + 0.1), (1 + 0.15) ** 4]
    assert jnp.abs(traj.states - jnp.cumprod(jnp.array(growth))).max() < 1e-14
    assert int(traj.constants["steps"]) == 7


def test_rounding_adds_no_step():
    steps = EvenSteps(jnp.linspace(0.0, 1.0, 11), jnp.asarray(0.01))
    assert int(steps.counts().sum()) == 100


def test_one_time_is_the_start():
    traj = integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), jnp.array([3.0]))
    assert traj.states.shape == (1, 2) and int(traj.constants["steps"]) == 0


def test_python_numbers_and_numpy_are_welcome():
    traj = integrate(FunctionLaw(decay), {"x": 1, "y": np.ones(2, np.int64)}, [0, 1])
    assert traj.states["x"][-1] == pytest.approx(np.exp(-1), rel=1e-5) and traj.ts.dtype == jnp.float32


# -- dense output


def test_dense_output_between_frames(x64):
    traj = integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0]), dense=True, rtol=1e-9, atol=1e-9)
    t = jnp.array([0.0, 0.123, 1.7, 3.0])
    assert jnp.abs(traj.interpolate(t) - jnp.stack([jnp.cos(t), -jnp.sin(t)], 1)).max() < 1e-6
    assert traj.interpolate(0.5).shape == (2,)
    with pytest.raises(InputError, match=r"within \[0.0, 3.0\]"):
        traj.interpolate(3.1)
    with pytest.raises(InputError, match="dense=True"):
        integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])).interpolate(1.0)


def test_dense_output_of_symplectic_methods_and_of_ensembles(x64):
    law, ts = SecondOrder(lambda t, x, args: -x), jnp.array([0.0, 2.0])
    run = jax.vmap(lambda x: integrate(law, {"x": x, "v": jnp.zeros(())}, ts, method="yoshida4", dt=0.05, dense=True))
    traj = run(jnp.array([1.0, 2.0]))
    assert traj.ensemble == 2
    assert traj[1].interpolate(1.3)["x"] == pytest.approx(2 * np.cos(1.3), abs=1e-5)
    both = jax.vmap(lambda one: one.interpolate(jnp.array(1.3)))(traj)
    assert jnp.abs(both["v"] + jnp.array([1.0, 2.0]) * jnp.sin(1.3)).max() < 1e-5
    with pytest.raises(InputError, match="one trajectory"):
        traj.interpolate(1.0)


# -- gradients


@pytest.mark.parametrize("adjoint", [*ADJOINTS, diffrax.RecursiveCheckpointAdjoint(checkpoints=8)])
def test_gradients(adjoint, x64):
    """d/dp of e^(-p) is -e^(-p); for the steady state, of x = p it is 1."""

    class Relax(eqx.Module):
        p: jax.Array
        steady: bool = eqx.field(static=True)

        def drift(self, t, x, args):
            return -(x - self.p) if self.steady else -self.p * x

    steady = adjoint == "implicit"
    ts = jnp.array([0.0, 40.0]) if steady else jnp.array([0.0, 0.4, 1.0])

    def end(p):
        traj = integrate(Relax(p, steady), jnp.ones(()), ts, adjoint=adjoint, rtol=1e-8, atol=1e-8, max_steps=256)
        return traj.states[-1]

    grad = jax.jacfwd if adjoint == "forward" else jax.grad
    truth = 1.0 if steady else -np.exp(-0.7)
    assert float(grad(end)(jnp.array(0.7))) == pytest.approx(truth, abs=1e-5)


def test_gradient_through_a_closure_and_fixed_steps(x64):
    def end(p):
        return integrate(FunctionLaw(lambda t, x, args: -p * x), jnp.ones(()), [0.0, 1.0], method="dopri8", dt=0.1).states[-1]

    assert float(jax.grad(end)(jnp.array(0.7))) == pytest.approx(-np.exp(-0.7), abs=1e-9)


def test_backsolve_with_fixed_steps(x64):
    law = FunctionLaw(lambda t, x, args: -args * x)

    def end(p):
        ts = jnp.array([0.0, 0.35, 1.0])
        return integrate(law, jnp.ones(()), ts, method="midpoint", dt=1e-3, args=p, adjoint="backsolve").states.sum()

    truth = -0.35 * np.exp(-0.7 * 0.35) - np.exp(-0.7)
    assert float(jax.grad(end)(jnp.array(0.7))) == pytest.approx(truth, abs=1e-5)


# -- jit, vmap, compilation


def test_jit_equals_eager_and_vmap_equals_loop():
    law, ts = FunctionLaw(turn), jnp.linspace(0, 1, 4)
    starts = jr.normal(jr.key(1), (3, 2))
    loop = jnp.stack([integrate(law, x, ts).states for x in starts])
    mapped = jax.vmap(lambda x: integrate(law, x, ts))(starts)
    compiled = jax.jit(lambda x, ts: integrate(law, x, ts).states)(starts[0], ts)
    assert mapped.ensemble == 3 and jnp.allclose(mapped.states, loop, atol=2e-6)
    assert jnp.allclose(compiled, loop[0], atol=1e-6)
    fixed = jax.jit(lambda x, ts, dt: integrate(law, x, ts, method="heun", dt=dt).states)(starts[0], ts, 0.1)
    assert jnp.allclose(fixed, integrate(law, starts[0], ts, method="heun", dt=0.1).states, atol=1e-6)


def test_no_second_compilation():
    traced = []

    class Rate(eqx.Module):
        rate: jax.Array

        def drift(self, t, x, args):
            traced.append(1)
            return -self.rate * x

    def run(rate, dt, rtol):
        integrate(Rate(jnp.array(rate)), jnp.ones(2), jnp.array([0.0, rate]), method="heun", dt=dt, rtol=rtol)

    run(1.0, 0.1, 1e-3)
    before = len(traced)
    run(2.0, 0.03, 1e-5)
    assert before > 0 and len(traced) == before


# -- stochastic laws


@pytest.mark.parametrize("method", ADDITIVE)
def test_ornstein_uhlenbeck(method, key, x64):
    """Mean m(1 - e^(-rt)) and variance s²(1 - e^(-2rt))/(2r) at two times, covariance e^(-r(t - s)) times the first."""
    law, n = OrnsteinUhlenbeck(jnp.array([2.0, -1.0]), 2.0, 0.5), 1500
    ts = jnp.array([0.0, 0.11, 0.4])
    run = jax.jit(jax.vmap(lambda k: integrate(law, jnp.zeros(2), ts, method=method, dt=0.01, key=k).states))
    x = run(jr.split(key, n))
    for frame in (1, 2):
        t = float(ts[frame])
        mean, var = law.mean * (1 - np.exp(-2 * t)), 0.25 * (1 - np.exp(-4 * t)) / 4
        slack = 0.02 * np.abs(mean) * 2 * 0.01 / 0.02  # first-order bias of the coarsest of the methods
        assert_within_error(x[:, frame].mean(0), mean, standard_error=np.sqrt(var / n) + slack / 4)
        assert_within_error(x[:, frame].var(0), var, standard_error=var * np.sqrt(2 / n) * 1.1)
    cov = ((x[:, 1] - x[:, 1].mean(0)) * (x[:, 2] - x[:, 2].mean(0))).mean(0)
    first, second = (0.25 * (1 - np.exp(-4 * t)) / 4 for t in (0.11, 0.4))
    assert_within_error(cov, np.exp(-2 * 0.29) * first, standard_error=np.sqrt(2 * first * second / n))


@pytest.mark.parametrize("method,calculus", [("euler_maruyama", "ito"), ("ito_milstein", "ito")] + [(m, "stratonovich") for m in STRATONOVICH])
def test_geometric_brownian_motion_tells_ito_from_stratonovich(method, calculus, key, x64):
    law, n = Geometric(0.3, 0.8, calculus), 4000
    run = jax.jit(jax.vmap(lambda k: integrate(law, jnp.ones(()), jnp.array([0.0, 1.0]), method=method, dt=0.02, key=k).states[-1]))
    x = run(jr.split(key, n))
    growth = 0.3 if calculus == "ito" else 0.3 + 0.32
    spread = np.exp(growth) * np.sqrt((np.exp(0.64) - 1) / n)
    assert_within_error(x.mean(), np.exp(growth), standard_error=spread)  # the other calculus is 11 of them away


@pytest.mark.parametrize("method,order", [("euler_maruyama", 0.5), ("ito_milstein", 1.0)])
def test_strong_order_on_one_brownian_path(method, order, key, x64):
    """Against the exact solution on the same path: x = exp((growth - noise²/2) t + noise W)."""
    law, keys = Geometric(0.3, 0.8), jr.split(key, 400)

    def error(dt):
        def one(k):
            end = integrate(law, jnp.ones(()), jnp.array([0.0, 1.0]), method=method, dt=dt, key=k).states[-1]
            tree = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, jax.ShapeDtypeStruct((), float), k)
            return jnp.abs(end - jnp.exp(0.3 - 0.32 + 0.8 * tree.evaluate(0.0, 1.0)))

        return float(jax.jit(jax.vmap(one))(keys).mean())

    slope = np.log2(error(1 / 16) / error(1 / 64)) / 2
    assert slope == pytest.approx(order, abs=0.2)


def test_correlated_noise_by_an_operator(key, x64):
    """dx = L dW with one Brownian motion for two numbers: covariance L Lᵀ t."""
    mix = jnp.array([[1.0], [-2.0]])
    law = FunctionLaw(lambda t, x, args: jnp.zeros_like(x), lambda t, x, args: lx.MatrixLinearOperator(mix))
    run = jax.jit(jax.vmap(lambda k: integrate(law, jnp.zeros(2), [0.0, 0.5], method="euler_maruyama", dt=0.25, key=k).states[-1]))
    x = run(jr.split(key, 4000))
    assert jnp.abs(x[:, 1] + 2 * x[:, 0]).max() < 1e-12
    assert_within_error(x[:, 0].var(), 0.5, standard_error=0.5 * np.sqrt(2 / 4000))


def test_adaptive_stochastic_steps_hit_the_frames(key, x64):
    law, n = OrnsteinUhlenbeck(jnp.zeros(1), 1.0, 1.0), 800
    ts = jnp.array([0.0, 0.05, 0.5])
    run = jax.jit(jax.vmap(lambda k: integrate(law, jnp.zeros(1), ts, method="spark", rtol=3e-2, atol=3e-2, key=k).states))
    x = run(jr.split(key, n))
    for frame in (1, 2):
        var = (1 - np.exp(-2 * float(ts[frame]))) / 2
        assert_within_error(x[:, frame].var(), var, standard_error=var * np.sqrt(2 / n))


def test_same_key_same_bits_and_other_key_other_path(key):
    law, ts = OrnsteinUhlenbeck(jnp.zeros(3), 1.0, 1.0), jnp.linspace(0, 1, 3)
    first, again, other = (
        integrate(law, jnp.zeros(3), ts, method="heun", dt=0.1, key=k).states for k in (key, key, jr.key(1))
    )
    assert jnp.array_equal(first, again) and not jnp.allclose(first, other)


# -- what is refused


def bad(match, **changes):
    given = {"law": FunctionLaw(turn), "x0": jnp.ones(2), "ts": jnp.linspace(0.0, 1.0, 4), **changes}
    with pytest.raises(InputError, match=match):
        integrate(given.pop("law"), given.pop("x0"), given.pop("ts"), **given)


def test_times_are_checked():
    bad(r"ts must increase, got ts\[2\]=0.5 after ts\[1\]=1.0", ts=[0.0, 1.0, 0.5])
    bad(r"ts must decrease, got ts\[2\]=2.0 after ts\[1\]=1.0", ts=[3.0, 1.0, 2.0])
    bad(r"ts must increase, got ts\[1\]=1.0 after ts\[0\]=1.0 in float32", ts=np.array([1.0, 1.0 + 1e-9]))
    bad(r"ts\[1\]=nan", ts=[0.0, np.nan])
    bad(r"\(frames,\)", ts=0.5)
    bad(r"\(frames,\)", ts=[])
    bad("real numbers", ts=["now", "then"])
    bad("real numbers", ts=[[0.0], [1.0, 2.0]])
    noisy = FunctionLaw(turn, lambda t, x, args: jnp.ones_like(x))
    bad("runs forwards only", law=noisy, ts=[1.0, 0.0], method="heun", dt=0.1, key=jr.key(0))


def test_states_are_checked():
    bad("no arrays", x0={})
    bad("leaf 'a'", x0={"a": "text"})
    bad("leaf 'a' is not in row 1", law=FunctionLaw(decay), x0={"a": jnp.array([1.0, jnp.nan])})
    bad("shape", law=FunctionLaw(lambda t, x, args: x[:1]))
    bad("structure", law=FunctionLaw(lambda t, x, args: {"x": x}))


def test_methods_are_checked():
    bad("did you mean 'tsit5'", method="tsit")
    bad("recursive", adjoint="recursiv")
    bad("give dt", method="euler")
    bad("give dt", method="midpoint" if not issubclass(diffrax.Midpoint, diffrax.AbstractAdaptiveSolver) else "euler")
    bad("for laws with a diffusion", method="euler_maruyama", dt=0.1)
    bad("acceleration", method="leapfrog", dt=0.1)
    bad("Diffrax solver", method=3)
    bad("max_steps must be positive", max_steps=0)
    bad("dt must be a positive number, got -0.1", dt=-0.1)
    bad("rtol must be a positive number, got nan", rtol=float("nan"))
    bad("start, end", adjoint="implicit")
    bad("dense", adjoint="backsolve", dense=True)
    bad("method drift", law=lambda t, x, args: x)
    bad("calculus must be", law=None) if False else None
    with pytest.raises(InputError, match="calculus"):
        FunctionLaw(turn, calculus="fisk")
    with pytest.raises(InputError, match="functions"):
        FunctionLaw(1.0)


def test_noise_is_checked(key):
    ones = FunctionLaw(turn, lambda t, x, args: jnp.ones_like(x))
    bad("needs key", law=ones, method="heun", dt=0.1)
    bad("'tsit5' cannot", law=ones, key=key)
    bad("diffusion returns shape", law=FunctionLaw(turn, lambda t, x, args: jnp.ones(3)), method="heun", dt=0.1, key=key)
    bad("'backsolve'", law=ones, method="heun", dt=0.1, key=key, adjoint="backsolve")
    multiplicative = FunctionLaw(turn, lambda t, x, args: x)
    bad("ito calculus.*euler_maruyama", law=multiplicative, method="heun", dt=0.1, key=key)
    bad("does not depend on the state", law=multiplicative, method="sra1", dt=0.1, key=key)
    other = FunctionLaw(turn, lambda t, x, args: x, "stratonovich")
    bad("stratonovich calculus", law=other, method="euler_maruyama", dt=0.1, key=key)
    tree = FunctionLaw(decay, lambda t, x, args: x)
    bad("one array", law=tree, x0={"a": jnp.ones(2)}, method="ito_milstein", dt=0.1, key=key)


# -- what goes wrong on the way


def test_blow_up_is_not_finite():
    """dx = x² from 1 is infinite at t = 1."""
    law = FunctionLaw(lambda t, x, args: x**2)
    with pytest.raises(NotFinite, match=r"after ts\[2\]=1"):
        integrate(law, jnp.ones(()), [0.0, 0.5, 1.0, 3.0], method="euler", dt=0.01)
    with pytest.raises(BudgetExhausted, match=r"ts\[1\]=0.5"):
        integrate(law, jnp.ones(()), [0.0, 0.5, 3.0], max_steps=200)
    with pytest.raises(BudgetExhausted, match="needs 300 steps, max_steps=200"):
        integrate(law, jnp.ones(()), [0.0, 3.0], method="heun", dt=0.01, max_steps=200)


def test_failure_inside_compiled_code_raises_too():
    law = FunctionLaw(lambda t, x, args: x**2)
    run = jax.jit(lambda x: integrate(law, x, [0.0, 3.0], max_steps=200).states)
    with pytest.raises(RuntimeError, match="max_steps=200 reached"):
        jax.block_until_ready(run(jnp.ones(())))
    run = jax.jit(lambda x: integrate(law, x, [0.0, 3.0], method="euler", dt=0.01).states)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        jax.block_until_ready(run(jnp.ones(())))


def test_failure_as_a_flag():
    law = FunctionLaw(lambda t, x, args: x**2)
    run = jax.vmap(lambda x: integrate(law, x, [0.0, 0.5, 3.0], max_steps=200, throw=False))
    traj = run(jnp.array([1.0, -1.0]))  # from -1 it is -1 / (1 + t)
    assert traj.constants["ok"].tolist() == [False, True]
    assert traj.states[0, 1] == pytest.approx(2.0, rel=1e-4) and not jnp.isfinite(traj.states[0, 2])
    assert traj.states[1, 2] == pytest.approx(-0.25, rel=1e-4)


def test_laws_are_recognised():
    assert isinstance(FunctionLaw(turn), Law) and isinstance(SecondOrder(turn), Law) and not isinstance(turn, Law)
