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
from kinema.motion import METHODS, FunctionLaw, Law, Leapfrog, SecondOrder, integrate
from kinema.motion.blocks import Step
from kinema.motion.methods import NOISE_ONLY
from kinema.motion.stepping import EvenSteps, counts

SYMPLECTIC = ("leapfrog", "yoshida4")  # see test_symplectic.py


def turn(t, x, args):
    """Rotation by one radian in a unit of time, clockwise: x(t) = (cos t, -sin t) from (1, 0)."""
    return jnp.array([x[1], -x[0]])


def spin(t, x, args):
    """Rotation at the rate base + slope t: one law, compiled once, for several tests."""
    return (args["base"] + args["slope"] * t) * turn(t, x, args)


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


# -- every method


@pytest.mark.parametrize("method", [name for name in METHODS if name not in SYMPLECTIC])
def test_any_method_takes_any_tree(method, key, monkeypatch):
    """Traced, not compiled: structure, shapes and precision of what comes out; noise is made ahead of the steps."""
    asked = []

    def evaluate(step, t0, t1=None, **options):
        asked.append(t0 is step.t0 and t1 is step.t1)
        return known(step, t0, t1, **options)

    known = Step.evaluate
    monkeypatch.setattr(Step, "evaluate", evaluate)
    x0 = {"a": jnp.ones((2, 3)), "b": (jnp.ones(()),)} if method != "ito_milstein" else jnp.ones((2, 3))
    law = FunctionLaw(decay, (lambda t, x, args: jax.tree.map(jnp.ones_like, x)) if method in NOISE_ONLY else None)
    traj = jax.eval_shape(lambda k: integrate(law, x0, jnp.linspace(0, 1, 4), method=method, dt=0.01, key=k), key)
    assert jax.tree.structure(traj.states) == jax.tree.structure(x0)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(traj.states)] == [
        ((4, *x.shape), jnp.float32) for x in jax.tree.leaves(x0)
    ]
    assert all(asked) and bool(asked) == (method in NOISE_ONLY)


# -- ordinary laws


def rates(base, slope):
    return {"base": jnp.array(base), "slope": jnp.array(slope)}


def test_rotation_is_followed_at_every_frame(x64):
    """Angle a(t) = speed (t² - 1) / 2 from t = 1, so that a law without its time or arguments would fail."""
    ts, args = jnp.array([1.0, 1.3, 2.0, 2.1, 3.0]), rates(0.0, 0.5)
    traj = integrate(FunctionLaw(spin), jnp.array([1.0, 0.0]), ts, args=args, rtol=1e-10, atol=1e-10)
    angle = 0.5 * (ts**2 - 1) / 2
    assert jnp.abs(traj.states - jnp.stack([jnp.cos(angle), -jnp.sin(angle)], axis=1)).max() < 1e-8
    assert len(traj) == 5 and traj.ensemble is None and traj.meta == {"method": "tsit5"}
    assert 10 < int(traj.constants["steps"]) < 200


@pytest.mark.parametrize("method,order", [("tsit5", 5), ("dopri8", 8), ("kvaerno3", 3), ("heun", 2)])
def test_order(method, order, x64):
    """The error of a fixed step falls with the order of the method."""
    law, args = FunctionLaw(spin), rates(4.0, 4.0)  # angle 4t + 2t²
    truth = jnp.array([jnp.cos(6.0), -jnp.sin(6.0)])
    ts, start = jnp.array([0.0, 0.2, 0.4, 0.7, 1.0]), jnp.array([1.0, 0.0])
    errors = []
    for dt in (0.05, 0.025) if order > 3 else (0.02, 0.01):
        end = integrate(law, start, ts, method=method, dt=dt, rtol=1e-9, atol=1e-9, args=args).states[-1]
        errors.append(float(jnp.linalg.norm(end - truth)))
    assert np.log2(errors[0] / errors[1]) > order - 0.3, errors


def test_backwards_undoes_forwards(x64):
    law, ts, given = FunctionLaw(spin), jnp.linspace(0.0, 2.0, 5), {"args": rates(1.0, 0.0)}
    there = integrate(law, jnp.array([1.0, 0.0]), ts, rtol=1e-9, atol=1e-9, **given)
    back = integrate(law, there.states[-1], ts[::-1], rtol=1e-9, atol=1e-9, **given)
    assert jnp.abs(back.states[::-1] - there.states).max() < 1e-7
    assert jnp.all(back.ts == ts[::-1])
    fixed = integrate(law, there.states[-1], ts[::-1], method="dopri8", dt=0.1, **given)
    assert jnp.abs(fixed.states[-1] - there.states[0]).max() < 1e-7


def test_stiff_law():
    law = FunctionLaw(lambda t, x, args: -2000.0 * (x - jnp.cos(t)))
    traj = integrate(law, jnp.ones(1), [0.0, 2.0], method="kvaerno5", max_steps=300, rtol=1e-4, atol=1e-4)
    assert traj.states[-1, 0] == pytest.approx(np.cos(2.0), abs=2e-3)


def test_fixed_steps_land_on_frames_exactly(x64):
    """Euler on dx = x: the product of (1 + h) over the very steps, so no step was cut, moved or interpolated."""
    ts = jnp.array([0.0, 0.3, 0.4, 1.0])
    traj = integrate(FunctionLaw(lambda t, x, args: x), jnp.ones(()), ts, method="euler", dt=0.16)
    growth = [1.0, (1 + 0.15) ** 2, (1 + 0.1), (1 + 0.15) ** 4]
    assert jnp.abs(traj.states - jnp.cumprod(jnp.array(growth))).max() < 1e-14
    assert int(traj.constants["steps"]) == 7


def test_rounding_adds_no_step():
    assert int(counts(jnp.linspace(0.0, 1.0, 11), 0.01).sum()) == 100


def test_one_time_is_the_start():
    traj = integrate(FunctionLaw(turn), jnp.array([1.0, 0.0]), jnp.array([3.0]))
    assert traj.states.shape == (1, 2) and int(traj.constants["steps"]) == 0


def test_single_precision_where_double_is_possible(x64):
    x0, ts = jnp.ones(2, jnp.float32), np.linspace(0, 1, 4, dtype=np.float32)
    traj = integrate(FunctionLaw(decay), x0, ts, method="heun", dt=0.01)
    assert traj.states.dtype == jnp.float32 and jnp.abs(traj.states[-1] - np.exp(-1)).max() < 1e-4


def test_a_solver_may_bring_its_step_rule():
    class Ruled(Leapfrog):
        def controller(self, ts, dt):
            return EvenSteps(ts, jnp.asarray(0.25))

    spring, x0 = SecondOrder(lambda t, x, args: -x), {"x": jnp.ones(()), "v": jnp.zeros(())}
    traj = integrate(spring, x0, [0.0, 1.0, 1.5], method=Ruled())
    assert int(traj.constants["steps"]) == 6 and traj.meta == {"method": "Ruled"}


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

    @jax.jit
    @jax.vmap
    def run(x, y):
        spring = integrate(law, {"x": x, "v": jnp.zeros(())}, ts, method="yoshida4", dt=0.05, dense=True)
        return spring, integrate(FunctionLaw(decay), y, ts, method="heun", dt=0.05, dense=True)

    traj, plain = run(jnp.array([1.0, 2.0]), jnp.ones(2))
    assert plain[0].interpolate(1.3) == pytest.approx(np.exp(-1.3), abs=1e-3)
    assert traj.ensemble == 2
    assert traj[1].interpolate(1.3)["x"] == pytest.approx(2 * np.cos(1.3), abs=1e-5)
    both = jax.vmap(lambda one: one.interpolate(jnp.array(1.3)))(traj)
    assert jnp.abs(both["v"] + jnp.array([1.0, 2.0]) * jnp.sin(1.3)).max() < 1e-5
    with pytest.raises(InputError, match="one trajectory"):
        traj.interpolate(1.0)


# -- gradients


class Relax(eqx.Module):
    """To p at unit rate, if steady; else decay at the rate p."""

    p: jax.Array
    steady: bool = eqx.field(static=True)

    def drift(self, t, x, args):
        return -(x - self.p) if self.steady else -self.p * x


@pytest.mark.parametrize(
    "adjoint,options",
    [
        ("recursive", {}),
        ("recursive", {"method": "heun", "dt": 1e-3}),
        ("direct", {"max_steps": 64}),
        ("forward", {}),
        ("backsolve", {}),
        ("backsolve", {"method": "midpoint", "dt": 1e-3}),
        ("implicit", {}),
        (diffrax.RecursiveCheckpointAdjoint(checkpoints=8), {}),
    ],
)
def test_gradients(adjoint, options, x64):
    """d/dp of e^(-pt) is -t e^(-pt); of the steady state x = p it is 1."""
    steady = adjoint == "implicit"
    ts = jnp.array([0.0, 40.0]) if steady else jnp.array([0.0, 0.35, 1.0])

    def run(p):
        return integrate(Relax(p, steady), jnp.ones(()), ts, adjoint=adjoint, **{"rtol": 1e-8, "atol": 1e-8, **options})

    grad = (jax.jacfwd if adjoint == "forward" else jax.grad)(lambda p: run(p).states[1:].sum())(jnp.array(0.7))
    truth = 1.0 if steady else -0.35 * np.exp(-0.7 * 0.35) - np.exp(-0.7)
    assert float(grad) == pytest.approx(truth, abs=1e-5)
    if steady:
        assert run(jnp.array(0.7)).states == pytest.approx(np.array([1.0, 0.7]), abs=1e-6)


def test_gradient_through_a_closure(x64):
    def end(p):
        law = FunctionLaw(lambda t, x, args: -p * x)
        return integrate(law, jnp.ones(()), [0.0, 1.0], method="dopri8", dt=0.1).states[-1]

    assert float(jax.grad(end)(jnp.array(0.7))) == pytest.approx(-np.exp(-0.7), abs=1e-9)


# -- jit, vmap, compilation


def test_jit_equals_eager_and_vmap_equals_loop():
    law, ts = FunctionLaw(turn), jnp.linspace(0, 1, 4)
    starts = jr.normal(jr.key(1), (3, 2))
    loop = jnp.stack([integrate(law, x, ts, method="heun", dt=0.1).states for x in starts])
    mapped = jax.vmap(lambda x: integrate(law, x, ts, method="heun", dt=0.1))(starts)
    compiled = jax.jit(lambda x, ts, dt: integrate(law, x, ts, method="heun", dt=dt).states)(starts[0], ts, 0.1)
    assert mapped.ensemble == 3 and jnp.allclose(mapped.states, loop, atol=1e-6)
    assert jnp.allclose(compiled, loop[0], atol=1e-6)


def test_many_rows_of_width_three(optimised):
    """Compilers have been wrong at such sizes. Two steps of Heun on x' = -x multiply by (1 - h + h²/2)²."""
    x = jr.normal(jr.key(2), (16_385, 3))
    run = jax.vmap(lambda x: integrate(FunctionLaw(decay), x, [0.0, 0.5], method="heun", dt=0.25).states[-1])
    truth = x * (1 - 0.25 + 0.25**2 / 2) ** 2
    assert jnp.abs(run(x) - truth).max() < 1e-6 and jnp.abs(jax.jit(run)(x) - truth).max() < 1e-6


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


@pytest.mark.parametrize("method", ["euler_maruyama", "sra1"])
def test_ornstein_uhlenbeck(method, key, x64):
    """Mean m(1 - e^(-rt)) and variance s²(1 - e^(-2rt))/(2r) at two times, covariance e^(-r(t - s)) times the first."""
    law, n = OrnsteinUhlenbeck(jnp.array([2.0, -1.0]), 2.0, 0.5), 1500
    ts = jnp.array([0.0, 0.11, 0.4])
    run = jax.jit(jax.vmap(lambda k: integrate(law, jnp.zeros(2), ts, method=method, dt=0.005, key=k).states))
    x = run(jr.split(key, n))
    first, second = (0.25 * (1 - np.exp(-4 * t)) / 4 for t in (0.11, 0.4))
    for frame, t, var in ((1, 0.11, first), (2, 0.4, second)):
        mean = law.mean * (1 - np.exp(-2 * t))
        bias = 0.01 * np.abs(law.mean) if method == "euler_maruyama" else 0  # of first order in dt
        assert_within_error(x[:, frame].mean(0), mean, standard_error=np.sqrt(var / n) + bias / 4)
        assert_within_error(x[:, frame].var(0), var, standard_error=var * (np.sqrt(2 / n) + 0.005))
    cov = ((x[:, 1] - x[:, 1].mean(0)) * (x[:, 2] - x[:, 2].mean(0))).mean(0)
    assert_within_error(cov, np.exp(-2 * 0.29) * first, standard_error=np.sqrt(2 * first * second / n))


@pytest.mark.parametrize(
    "method,calculus,order",
    [
        ("euler_maruyama", "ito", 0.5),
        ("ito_milstein", "ito", 1),
        ("heun", "stratonovich", 1),
        ("slow_rk", "stratonovich", 1.5),
    ],
)
def test_geometric_brownian_motion(method, calculus, order, key, x64):
    """Path by path against x = exp((growth [- noise²/2 if Itô]) t + noise W): slope of the mean error, and the mean."""
    law, n = Geometric(0.3, 0.8, calculus), 1000
    levy = diffrax.SpaceTimeLevyArea if method == "slow_rk" else diffrax.BrownianIncrement

    @jax.jit
    @jax.vmap
    def run(k, dt):
        end = integrate(law, jnp.ones(()), jnp.array([0.0, 1.0]), method=method, dt=dt, key=k).states[-1]
        tree = diffrax.VirtualBrownianTree(0.0, 1.0, dt / 2, jax.ShapeDtypeStruct((), float), k, levy_area=levy)
        growth = 0.3 - (0.32 if calculus == "ito" else 0.0)
        return end, jnp.exp(growth + 0.8 * tree.evaluate(0.0, 1.0))

    errors = []
    for dt in (1 / 8, 1 / 32):
        end, truth = run(jr.split(key, n), jnp.full(n, dt))
        errors.append(float(jnp.abs(end - truth).mean()))
    assert np.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.25), errors
    growth = 0.3 + (0.0 if calculus == "ito" else 0.32)
    spread = np.exp(growth) * np.sqrt((np.exp(0.64) - 1) / n)
    assert_within_error(end.mean(), np.exp(growth), standard_error=spread)


def test_correlated_noise_by_an_operator(key, x64):
    """dx = L dW with one Brownian motion for two numbers: covariance L Lᵀ t."""
    mix = jnp.array([[1.0], [-2.0]])
    law = FunctionLaw(lambda t, x, args: jnp.zeros_like(x), lambda t, x, args: lx.MatrixLinearOperator(mix))

    def run(k):
        return integrate(law, jnp.zeros(2), [0.0, 0.5], method="euler_maruyama", dt=0.25, key=k).states[-1]

    x = jax.jit(jax.vmap(run))(jr.split(key, 4000))
    assert jnp.abs(x[:, 1] + 2 * x[:, 0]).max() < 1e-12
    assert_within_error(x[:, 0].var(), 0.5, standard_error=0.5 * np.sqrt(2 / 4000))


def test_adaptive_stochastic_steps_hit_the_frames(key, x64):
    law, n = OrnsteinUhlenbeck(jnp.zeros(1), 1.0, 1.0), 800
    ts = jnp.array([0.0, 0.05, 0.5])

    def run(k):
        return integrate(law, jnp.zeros(1), ts, method="spark", rtol=3e-2, atol=3e-2, key=k).states

    x = jax.jit(jax.vmap(run))(jr.split(key, n))
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
    plain = getattr(integrate, "__wrapped__", integrate)  # users have no run-time type checks in front
    with pytest.raises(InputError, match=match):
        plain(given.pop("law"), given.pop("x0"), given.pop("ts"), **given)


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
    bad("for laws with a diffusion", method="euler_maruyama", dt=0.1)
    bad("acceleration", method="leapfrog", dt=0.1)
    bad("Diffrax solver", method=3)
    bad("max_steps must be positive", max_steps=0)
    bad("dt must be a positive number, got -0.1", dt=-0.1)
    bad("rtol must be a positive number, got nan", rtol=float("nan"))
    bad("start, end", adjoint="implicit")
    bad("dense", adjoint="backsolve", dense=True)
    bad("method drift", law=lambda t, x, args: x)
    with pytest.raises(InputError, match="calculus"):
        FunctionLaw(turn, calculus="fisk")


def test_noise_is_checked(key):
    ones = FunctionLaw(turn, lambda t, x, args: jnp.ones_like(x))
    bad("needs key", law=ones, method="heun", dt=0.1)
    bad("'tsit5' cannot", law=ones, key=key)
    bad(
        "diffusion returns shape", law=FunctionLaw(turn, lambda t, x, args: jnp.ones(3)), method="heun", dt=0.1, key=key
    )
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
    with pytest.raises(RuntimeError, match=r"max_steps=200 reached.*kvaerno5"):
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
