import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from plain_loop import run

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.fields import Moments, convert
from kinema.generate.generator import AbstractGenerator, Generator, moments_in_float64
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.noise import NoiseLaw, Normal
from kinema.generate.path import GAUSSIAN, VE, VP, Linear, Path
from kinema.generate.rows import bind
from kinema.generate.sampling import begin, data_prediction, push, push_edit, sample
from kinema.generate.solver import grids
from kinema.generate.solver.plan import Draft

PATH = VP()
MIXTURE = MixturePosterior(PATH, [[-1.0, 0.5], [1.0, -0.5]], np.array([0.1, 0.3]))
GRID = grids.karras(PATH, 6, high=4.0)
PLAN = solver.unipc(PATH, GRID)


class Lines(eqx.Module):
    """raw = gain x, whatever the time and structure of x; counts how often it is traced."""

    gain: float = -0.4
    traces: list = eqx.field(static=True, default_factory=list)

    def __call__(self, x, signal, cond=None):
        self.traces.append(1)
        return jax.tree.map(lambda leaf: self.gain * leaf, x)


def averaging(grid):
    """A solver with a running average of its outputs (E), as momentum methods have."""
    draft = Draft("averaging", grid, extrapolates="noise", history=2)
    for i in range(grid.steps):
        x, h = grid.a[i + 1] / grid.a[i], grid.s[i + 1] - grid.s[i] * grid.a[i + 1] / grid.a[i]
        weights, average = ([h, 0.0], (1.0, 0.0)) if i == 0 else ([1.2 * h, -0.2 * h], (0.6, 0.4))
        draft.add(i + 1, x, weights, B=average[0], E=average[1])
    return draft.plan()


SOLVERS = {
    "unipc": solver.unipc,
    "heun": solver.heun,
    "lms": lambda p, g: solver.adams(p, g, start="heun"),
    "averaging": lambda p, g: averaging(g),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_linear_network_gives_the_product_of_companion_matrices(name, x64, key):
    plan = SOLVERS[name](PATH, GRID)
    gen = Generator(PATH, Lines(), predicts="noise")
    # the network sees x scaled to unit size: on VP with sigma_data 1 the scale is 1
    a, s = (np.interp(plan.t, GRID.times, values) for values in (GRID.a, GRID.s))
    gains = -0.4 if plan.extrapolates == "noise" else (1 + 0.4 * s) / a
    x = jr.normal(jr.key(1), (3, 2))
    result = sample(gen, plan, 3, key=key, shape=(2,), start=x)
    assert np.allclose(result.x, solver.growth(plan, gains).real * x, rtol=1e-11)
    assert result.nfe == result.passes == plan.nfe


@pytest.mark.parametrize(
    ("predicts", "build"),
    [("noise", solver.euler), ("velocity", solver.heun), ("data", solver.euler_maruyama), ("velocity", solver.unipc)],
)
def test_binding_is_the_direct_conversion(predicts, build, x64):
    gen = Generator(PATH, Lines(), predicts=predicts)
    plan = build(PATH, GRID)
    rows, x = bind(plan, gen), jnp.array([0.7, -1.1])

    @jax.jit
    def look(t, row):
        raw, state = gen.raw(t, x), eqx.tree_at(lambda s: s.x, begin(rows, x), x)
        h, data = push(row, state, raw), data_prediction(row, state, raw)
        return gen(t, x), h, data, push_edit(row, h, data, data), push_edit(row, h, data, data + 0.1)

    for j in (0, 3, plan.nfe - 1):
        prediction, h, data, same, edited = look(plan.t[j], rows[j])
        pushed = plan.A[j] * x + plan.B[j] * getattr(prediction, plan.extrapolates)
        assert np.allclose(h, pushed + plan.S[j] * prediction.score, rtol=1e-9)
        assert np.allclose(data, prediction.data, rtol=1e-8)
        assert np.array_equal(same, h)
        moments = moments_in_float64(PATH, plan.t)
        field, score = (
            to.P[j] * x + to.Q[j] * (data + 0.1)
            for to in (convert("data", f, moments) for f in (plan.extrapolates, "score"))
        )
        assert np.allclose(edited, plan.A[j] * x + plan.B[j] * field + plan.S[j] * score, rtol=1e-8)


def test_the_loop_is_the_plain_loop(x64, key):
    """Same noise, same numbers: churn has noise before evaluations, ancestral steps after."""
    for plan in (solver.churn(PATH, GRID, amount=2.0), solver.ancestral(PATH, GRID), averaging(GRID)):
        key_source, key_steps = jr.split(jr.fold_in(key, 0))
        keys = [jr.split(jr.fold_in(key_steps, j)) for j in range(plan.nfe)]
        like = jax.ShapeDtypeStruct((2,), jnp.float64)
        noises = [Normal().sample(k[0] if n else k[1], like) for k, n, c in zip(keys, plan.n, plan.c) if n or c]
        start = GRID.s[0] * Normal().sample(key_source, like)
        field = jax.jit(lambda t, x, name=plan.extrapolates: getattr(MIXTURE(t, x), name))
        truth = run(plan, lambda t, x, field=field: np.asarray(field(t, x)), np.asarray(start), map(np.asarray, noises))
        assert np.allclose(sample(MIXTURE, plan, 1, key=key, shape=(2,)).x[0], truth, rtol=1e-9)


def test_a_sample_depends_on_its_key_and_index_alone(key):
    plan = solver.ancestral(PATH, GRID)
    seven = sample(MIXTURE, plan, 7, key=key, shape=(2,)).x
    assert np.array_equal(seven, sample(MIXTURE, plan, 7, key=key, shape=(2,)).x)
    assert np.allclose(sample(MIXTURE, plan, 3, key=key, shape=(2,)).x, seven[:3], rtol=1e-5)
    assert np.allclose(sample(MIXTURE, plan, 7, key=key, shape=(2,), batch_size=2).x, seven, rtol=1e-5)
    assert np.abs(sample(MIXTURE, plan, 7, key=jr.key(5), shape=(2,)).x - seven).min() > 0
    assert len(np.unique(np.asarray(seven)[:, 0])) == 7


def test_equal_shapes_compile_once(key):
    net = Lines()
    gen = Generator(PATH, net)
    sample(gen, PLAN, 4, key=key, shape=(2,))
    traced = len(net.traces)
    other = solver.unipc(PATH, grids.log_snr(PATH, 6, high=3.0), variant="bh1")
    sample(eqx.tree_at(lambda g: g.path, gen, PATH), other, 4, key=jr.key(3), shape=(2,))
    assert len(net.traces) == traced


def test_compiled_equals_eager(key):
    gen, plan = Generator(PATH, Lines()), solver.dpmpp(PATH, grids.karras(PATH, 3, high=3.0), eta=0.5)
    compiled = sample(gen, plan, 2, key=key, shape=(2,)).x
    with jax.disable_jit():
        eager = sample(gen, plan, 2, key=key, shape=(2,)).x
    assert np.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


def test_states_of_any_structure(key):
    shape = {"x": jax.ShapeDtypeStruct((3, 2), jnp.float32), "v": (jax.ShapeDtypeStruct((), jnp.float16),)}
    gen = Generator(PATH, Lines(), predicts="velocity")
    for plan in (PLAN, solver.predictor_corrector(PATH, solver.ancestral(PATH, GRID), rule="adaptive")):
        x = sample(gen, plan, 2, key=key, shape=shape).x
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) == {
            "x": ((2, 3, 2), jnp.float32),
            "v": (((2,), jnp.float16),),
        }
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(x))


def test_the_road_has_one_state_for_each_grid_point(key):
    plan = solver.restart(PATH, GRID, low=0.2, high=1.0)
    result = sample(MIXTURE, plan, 3, key=key, shape=(2,), save="all")
    assert result.path.shape == (3, GRID.steps, 2)
    assert np.array_equal(result.path[:, -1], result.x)


def test_coefficients_of_the_shape_of_a_sample(x64, key):
    draft, weight = Draft("shaped", GRID, extrapolates="data", history=2), np.array([0.3, -0.6])
    for i in range(GRID.steps):
        draft.add(i + 1, 0.5, [weight, 0.1], A=weight, B=1 - weight, d=(weight, 0.0))
    plan, start = draft.plan(), np.array([0.4, 1.2])
    field = jax.jit(lambda t, x: MIXTURE(t, x).data)
    truth = run(plan, lambda t, x: np.asarray(field(t, x)), start)
    assert np.allclose(sample(MIXTURE, plan, 1, key=key, shape=(2,), start=jnp.array([start])).x[0], truth, rtol=1e-9)


class Between(Path):
    """x_t = t x1 + (1 - t) x0 / 2 + sqrt(1 - t^2) z with a known x0."""

    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="condition")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=0.999)

    def coefficients(self, t):
        t = jnp.asarray(t, jnp.result_type(float))
        return t, (1 - t) / 2, jnp.sqrt(1 - t**2)


class Beside(AbstractGenerator):
    """Exact for data that lie at x0 plus a draw of a mixture, whatever field it returns."""

    mixture: MixturePosterior
    path: Between = Between()
    predicts: str = eqx.field(static=True, default="data")
    sigma_data: float = 1.0

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        moments = Moments.at(self.path, t)
        data = self.mixture(t, x - (moments.a + moments.b) * x0, x0=0 * x0).data + x0
        return convert("data", self.predicts, moments)(x - moments.b * x0, data)


@pytest.mark.parametrize("predicts", ["data", "noise", "velocity"])
@pytest.mark.parametrize("build", [solver.dpmpp, solver.euler, solver.euler_maruyama, solver.heun, solver.unipc])
def test_an_origin_is_a_shift(build, predicts, key, x64):
    """Data and origin moved together move the samples by as much and change nothing else, whatever the steps."""
    path, x0 = Between(), jnp.array([[3.0], [-2.0]])
    gen = Beside(MixturePosterior(path, [[0.5], [-1.0]], 0.2), predicts=predicts)
    plan = build(path, grids.from_times(path, np.linspace(0.1, 0.9, 5)))
    moved, still = (sample(gen, plan, 2, key=key, shape=(1,), x0=origin) for origin in (x0, 0 * x0))
    np.testing.assert_allclose(moved.x, still.x + 0.95 * x0, atol=1e-10)


def test_the_source_is_drawn_where_the_plan_starts(key):
    path, n = VE(0.01, 50.0), 4000
    plan = solver.euler(path, grids.karras(path, 1, low=-np.log(2.0), high=1.0, clean=False))
    x = sample(Generator(path, lambda x, signal, cond: 0 * x), plan, n, key=key, shape=(1,)).x
    ratio = plan.grid.s[1] / plan.grid.s[0]
    assert_within_error(x.var(), (2 * ratio) ** 2, standard_error=(2 * ratio) ** 2 * (2 / n) ** 0.5)


@pytest.mark.parametrize("name", ["sde-dpmpp-2m", "ancestral", "euler-maruyama", "churn"])
def test_stochastic_samples_have_the_moments_of_the_data(name, key):
    n = 4000
    x = np.asarray(sample(MIXTURE, solver.make(name, PATH, 48), n, key=key, shape=(2,)).x)
    mean, second = MIXTURE.means.mean(0), np.mean(MIXTURE.means**2 + MIXTURE.variances, 0)
    spread = second - mean**2
    assert_within_error(x.mean(0), mean, standard_error=np.sqrt(spread / n) + 0.005)
    assert_within_error(x.var(0), spread, standard_error=spread * (2 / n) ** 0.5 + 0.012)


def test_the_name_of_a_solver_is_not_a_plan():
    """Without the type checks that tests add."""
    with pytest.raises(InputError, match=r"plan must be a Plan, as solver.make.* gives, got 'heun'"):
        inspect.unwrap(bind)("heun", MIXTURE)


def test_brownian_noise_belongs_to_the_key_and_not_to_the_grid(key):
    """One Brownian path per sample: two grids of the same length give nearly one sample, with the right law."""
    n, steps = 600, 96
    fine = {"low": -3.0, "high": 1.0, "clean": False}
    spacings = [grids.log_snr(PATH, steps, **fine), grids.karras(PATH, steps, rho=3.0, **fine)]
    plans = [solver.dpmpp(PATH, grid, eta=1.0) for grid in spacings]
    two, point = (MixturePosterior(PATH, [[-1.0], [1.0]], variance) for variance in (0.1, 0.0))
    even, uneven = (sample(two, plan, n, key=key, shape=(1,), noise="brownian").x for plan in plans)
    assert jnp.sqrt(jnp.mean((even - uneven) ** 2)) < 0.2 < 1.0 < even.std()
    # with data at points the law of the solver is exact, if increments are standard normal
    x = sample(point, plans[1], n, key=key, shape=(1,), noise="brownian").x
    truth = float(plans[1].grid.a[-1] ** 2 + plans[1].grid.s[-1] ** 2)
    assert_within_error(x.var(), truth, standard_error=truth * (2 / n) ** 0.5 + 0.01)
    assert_within_error(x.mean(), 0.0, standard_error=(truth / n) ** 0.5)


def test_the_adaptive_corrector_sets_the_step_by_the_score(key):
    grid = grids.from_times(PATH, [0.5, 0.6])
    plan = solver.predictor_corrector(PATH, solver.euler(PATH, grid), rule="adaptive", snr=0.2)
    point = MixturePosterior(PATH, [[0.0, 0.0]])
    x = sample(point, plan, 1, key=key, shape=(2,), start=jnp.array([[0.3, -0.4]])).x[0]
    xi = Normal().sample(jr.split(jr.fold_in(jr.split(jr.fold_in(key, 0))[1], 0))[1], jnp.zeros(2))
    score = -np.array([0.3, -0.4]) / grid.s[0] ** 2
    step = 2 * 0.2**2 * 2 / np.sum(score**2)
    corrected = np.array([0.3, -0.4]) + step * score + np.sqrt(2 * step) * np.asarray(xi)
    assert np.allclose(x, grid.s[1] / grid.s[0] * corrected, rtol=1e-4)


@pytest.mark.parametrize("build", [solver.unipc, solver.adams])
def test_rows_for_a_short_history_ignore_the_rest(build):
    rows = bind(build(PATH, GRID, order=3), MIXTURE, shallow=True)
    at = eqx.filter_jit(lambda rows, age: rows.at(4, age).M)
    fresh = at(rows, jnp.asarray(0))
    assert np.count_nonzero(fresh[0, 2:]) == 1 and fresh[0, 2] != 0
    assert np.array_equal(at(rows, jnp.asarray(9)), rows.M[4])
    alone = bind(solver.euler(PATH, GRID), MIXTURE, shallow=True)
    assert np.array_equal(at(alone, jnp.asarray(0)), alone.M[4])


class Heavy(NoiseLaw):
    """A noise law that is not normal, as far as the checks can tell."""

    gaussian = False

    def sample(self, key, like):
        return Normal().sample(key, like)

    def log_prob(self, z):
        return Normal().log_prob(z)

    def score(self, z):
        return Normal().score(z)


HEAVY = VP(noise=Heavy())
FLOW = grids.uniform_time(Linear(), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"save": "some"}, "save must be"),
        ({"noise": "pink"}, "noise must be"),
        ({"start": jnp.zeros((3, 2))}, "start must have a leading axis of n=2"),
        ({"x0": jnp.zeros((2, 2))}, "has no origin"),
        ({"plan": solver.churn(PATH, GRID), "noise": "brownian"}, "move forward"),
        ({"plan": solver.predictor_corrector(PATH, solver.euler(PATH, GRID)), "noise": "brownian"}, "move forward"),
        ({"plan": solver.euler(VE(), grids.karras(VE(), 4))}, "built for another path: at t="),
        ({"plan": solver.ancestral(HEAVY, GRID), "gen": Generator(HEAVY, Lines())}, "adds noise, which needs a score"),
        (
            {"plan": solver.euler(Linear(), FLOW), "gen": Generator(Linear(), Lines(), predicts="noise")},
            "a network that predicts 'noise' cannot drive euler at t=0",
        ),
    ],
)
def test_bad_input_is_refused(options, message, key):
    arguments = {"gen": MIXTURE, "plan": PLAN, "n": 2, "key": key, "shape": (2,)} | options
    with pytest.raises(InputError, match=message):
        sample(arguments.pop("gen"), arguments.pop("plan"), arguments.pop("n"), **arguments)


def test_every_path_is_sampled_by_the_same_code(key):
    for name in ("sub-vp", "edm", "linear"):
        path = GAUSSIAN[name]()
        gen = MixturePosterior(path, [[0.5, -0.5]], 0.01)
        x = sample(gen, solver.make("dpmpp-2m", path, 8), 32, key=key, shape=(2,)).x
        assert np.abs(x - jnp.array([0.5, -0.5])).max() < 0.6, name
