"""The mean-reverting path and its fast solvers, against formulas of the papers and exact maps."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from plain_loop import run

from kinema import models
from kinema.errors import InputError
from kinema.generate import Generator, MeanReverting, MixturePosterior, sample
from kinema.generate.fields import Moments
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import in_float64
from kinema.generate.solver import ancestral, dpmpp, euler_maruyama, grids

PATH = MeanReverting()
MEAN, VARIANCE = 0.7, 0.02  # of the Gaussian target, as a residual
MEANS, SPREADS = np.array([[-0.6, 0.2], [0.1, -0.3], [0.7, 0.5]]), np.array([0.01, 0.02, 0.005])
GRID = grids.log_snr(PATH, 7, low=-3.6, high=5.0, clean=False)


def table(T=100):
    """log alpha of the discrete cosine schedule of IR-SDE: T + 1 rates, the first of which does not count."""
    place = np.arange(1, T + 2) / (T + 2)

    def square(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    total = np.cumsum(1 - square(place) / square(0.0))
    total -= total[0]
    return np.log(0.005) * total / total[-1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [(PATH, (0.8684, 0.3741, 0.0609)), (MeanReverting.tabulated(table()), (0.8531, 0.3608, 0.0592))],
    ids=["cosine", "table"],
)
def test_published_values_of_alpha(path, expected):
    alpha, b, s = in_float64(path.coefficients, 1 - np.array([0.25, 0.5, 0.75]))
    assert np.abs(alpha - expected).max() < 5.1e-5
    assert np.allclose(b, 1 - alpha, rtol=1e-12) and np.allclose(s, 50 / 255 * np.sqrt(1 - alpha**2), rtol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_alpha_is_the_integral_of_the_rate(schedule):
    """log alpha falls like int theta, by quadrature of theta itself."""
    q, k = 0.008, np.pi / 2 / 1.008
    rates = {
        "cosine": lambda u: 1 - (np.cos(k * (u + q)) / np.cos(k * q)) ** 2,
        "linear": lambda u: u,
        "constant": np.ones_like,
    }
    points, weights = np.polynomial.legendre.leggauss(60)
    u = np.array([0.01, 0.2, 0.6, 1.0])

    def integral(end):
        return end / 2 * np.sum(weights * rates[schedule](end * (points + 1) / 2))

    path = MeanReverting(schedule=schedule, end=0.02)
    share = np.array([integral(end) for end in u]) / integral(1.0)
    assert np.allclose(in_float64(path.log_alpha, 1 - u)[0], np.log(0.02) * share, rtol=1e-12)


def test_single_precision_near_the_data():
    """1 - alpha and s are all that is left there, and keep their digits."""
    u = np.float32(2.0) ** -np.arange(1, 24)
    t = np.float32(1) - u
    for schedule in ("cosine", "linear", "constant"):
        path = MeanReverting(schedule=schedule)
        found = path.coefficients(jnp.asarray(t))
        for single, double in zip(found, in_float64(path.coefficients, t)):
            assert np.allclose(single, double, rtol=3e-6, atol=0), schedule


def published(form, order, grid, i, *, stochastic=False, exact=True):
    """Coefficients of y, of the outputs (newest first) and of the noise, typed from the paper's formulas."""
    a, s, a_next, s_next = grid.a[i], grid.s[i], grid.a[i + 1], grid.s[i + 1]
    level = grid.log_snr
    h = level[i + 1] - level[i]
    q0, q1, q2 = np.eye(3)
    D1 = D2 = np.zeros(3)
    if order > 1:
        r0 = (level[i] - level[i - 1]) / h
        D1 = D10 = (q0 - q1) / r0
    if order > 2:
        r1 = (level[i - 1] - level[i - 2]) / h
        D11 = (q1 - q2) / r1
        D1, D2 = D10 + (D10 - D11) * r0 / (r0 + r1), (D10 - D11) / (r0 + r1)
    third = 2 if exact else 1
    if stochastic and form == "data":
        c1 = -np.expm1(-2 * h)
        c2 = 1 - c1 / (2 * h)
        return s_next / s * np.exp(-h), a_next * (c1 * q0 + c2 * D1), s_next * np.sqrt(c1)
    z = h if form == "noise" else -h
    p1 = np.expm1(z)
    if form == "noise":
        p2 = p1 / h - 1
        p3 = p2 / h - 0.5
        if stochastic:
            return a_next / a, -2 * s_next * (p1 * q0 + p2 * D1), s_next * np.sqrt(np.expm1(2 * h))
        return a_next / a, -s_next * (p1 * q0 + p2 * D1 + third * p3 * D2), 0.0
    p2 = p1 / h + 1
    p3 = p2 / h - 0.5
    return s_next / s, -a_next * (p1 * q0 - p2 * D1 + third * p3 * D2), 0.0


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "published"])
@pytest.mark.parametrize(("order", "stochastic"), [(1, False), (2, False), (3, False), (1, True), (2, True)])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_coefficients_are_those_of_the_paper(form, order, stochastic, exact):
    grid = grids.from_noise_ratios(PATH, np.exp([3.4, 2.9, 1.8, 1.1, 0.9, -0.7, -2.0]))  # uneven
    plan = dpmpp(PATH, grid, order=order, form=form, eta=float(stochastic), variant="heun", exact=exact)
    for i in range(grid.steps):
        x, outputs, noise = published(form, min(order, i + 1), grid, i, stochastic=stochastic, exact=exact)
        row = plan.M[i, 0]
        assert np.allclose(np.r_[row[0], row[2:]], np.r_[x, outputs[:order]], rtol=1e-10, atol=1e-12)
        assert row[1] == 0 and np.isclose(plan.c[i], noise, rtol=1e-10)


def test_posterior_sampling_is_ancestral():
    """The "optimal reverse" of IR-SDE, in the residual."""
    plan, std = ancestral(PATH, GRID), PATH.std
    for i in range(GRID.steps):
        now, after = GRID.a[i], GRID.a[i + 1]
        step = now / after
        x = step * (1 - after**2) / (1 - now**2)
        data = after * (1 - step**2) / (1 - now**2)
        noise = std * np.sqrt((1 - after**2) * (1 - step**2) / (1 - now**2))
        assert np.allclose([*plan.M[i, 0, [0, 2]], plan.c[i]], [x, data, noise], rtol=1e-10)


def gaussian(path, plan):
    """The exact field of N(MEAN, VARIANCE) that the plan extrapolates."""
    moments = {t: tuple(float(c) for c in in_float64(path.coefficients, t)) for t in plan.t}

    def field(t, x):
        a, _, s = moments[t]
        data = MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN)
        return data if plan.extrapolates == "data" else (x - a * data) / s

    return field


def mean_error(steps, **options):
    """Against the exact ODE map, which keeps the standard score of every point."""
    grid = grids.log_snr(PATH, steps, low=-3.6, high=4.0, clean=False)
    plan = dpmpp(PATH, grid, variant="heun", **options)
    law = np.sqrt(grid.a**2 * VARIANCE + grid.s**2)
    score = np.linspace(-2, 2, 9)
    found = run(plan, gaussian(PATH, plan), grid.a[0] * MEAN + law[0] * score)
    return np.abs(found - grid.a[-1] * MEAN - law[-1] * score).mean()


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("order", "exact", "slope"), [(1, True, 1), (2, True, 2), (3, False, 2)])
def test_order_of_convergence(order, exact, slope, form):
    errors = [mean_error(steps, order=order, exact=exact, form=form) for steps in (80, 160)]
    assert abs(np.log2(errors[0] / errors[1]) - slope) < 0.2


@pytest.mark.parametrize("form", ["data", "noise"])
def test_the_right_third_coefficient_gives_the_third_order(form):
    """Until the first step, of first order, is all that is left: here the slopes are nearer to 4 than to 3."""
    errors = [mean_error(steps, order=3, form=form) for steps in (20, 40, 80)]
    assert np.log2(np.array(errors[:-1]) / errors[1:]).min() > 3
    assert errors[-1] < mean_error(80, order=3, form=form, exact=False) / 10


@pytest.mark.parametrize("form", ["data", "noise"])
def test_a_step_of_the_sde_is_two_of_half_its_length(form):
    """One step and two: the same mean and variance while the output is constant."""
    levels = np.array([-1.0, 0.1, 1.2])
    whole, halves = (
        dpmpp(PATH, grids.from_noise_ratios(PATH, np.exp(-part)), order=1, form=form, eta=1.0)
        for part in (levels[[0, 2]], levels)
    )
    first, second = halves.M[0, 0], halves.M[1, 0]
    assert np.isclose(first[0] * second[0], whole.M[0, 0, 0], rtol=1e-10)
    assert np.isclose(second[0] * first[2] + second[2], whole.M[0, 0, 2], rtol=1e-10)
    assert np.isclose((second[0] * halves.c[0]) ** 2 + halves.c[1] ** 2, whole.c[0] ** 2, rtol=1e-10)


SOLVERS = {
    "ODE noise 3": lambda p, g: dpmpp(p, g, order=3, form="noise"),
    "SDE data 2": lambda p, g: dpmpp(p, g, eta=1.0),
}


def draws(gen, build, key, *, x0, start):
    return np.asarray(sample(gen, build(gen.path, GRID), len(x0), key=key, shape=(2,), x0=x0, start=start).x)


@pytest.mark.parametrize("name", SOLVERS)
def test_shifting_data_and_condition_shifts_samples(name, key, x64):
    """Sampling with (x1, x0) is sampling with (x1 - x0, 0), plus x0."""
    key_start, key_steps = jr.split(key)
    x0 = jnp.broadcast_to(jnp.array([0.4, -1.3]), (16, 2))
    start = PATH.std * jr.normal(key_start, (16, 2))
    here = MixturePosterior(PATH, MEANS + np.asarray(x0[0]), SPREADS)
    there = MixturePosterior(PATH, MEANS, SPREADS)
    shifted = draws(here, SOLVERS[name], key_steps, x0=x0, start=start + x0)
    assert np.allclose(shifted, draws(there, SOLVERS[name], key_steps, x0=0 * x0, start=start) + x0, rtol=0, atol=1e-11)


class Saying(AbstractGenerator):
    """The exact denoiser, in another parameterization."""

    exact: MixturePosterior
    predicts: str = eqx.field(static=True)
    path: MeanReverting = PATH
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        field = getattr(self.exact(t, x, x0=x0), self.predicts)
        return field - Moments.at(self.path, t).db * x0 if self.predicts == "velocity" else field


@pytest.mark.parametrize("build", [SOLVERS["SDE data 2"], euler_maruyama], ids=["SDE data 2", "Euler-Maruyama"])
def test_parameterizations_give_the_same_samples(build, key, x64):
    exact = MixturePosterior(PATH, MEANS, SPREADS)
    x0 = jr.normal(jr.key(1), (16, 2))
    found = [
        draws(Saying(exact, predicts), build, key, x0=x0, start=x0)
        for predicts in ("data", "noise", "score", "velocity")
    ]
    assert np.std(found[0]) > 0.1
    for other in found[1:]:
        assert np.allclose(other, found[0], rtol=0, atol=1e-10)


def test_the_papers_velocity_is_ours_by_the_angle(x64):
    """With cos = alpha and y = cos y1 + std sin z the paper's w = std cos z - sin y1; ours is its rate of turning."""
    exact = MixturePosterior(PATH, MEANS, SPREADS)
    x, x0 = jnp.array([0.2, -0.1]), jnp.array([0.5, 0.3])
    for t in (0.1, 0.5, 0.9):
        a, da = PATH.coefficients(t)[0], PATH.rates(t)[0]
        field, sin = exact(t, x, x0=x0), jnp.sqrt(1 - a**2)
        w = PATH.std * a * field.noise - sin * (field.data - x0)
        assert np.allclose(field.velocity, -da / sin * w, rtol=1e-12)
        assert np.allclose(field.data - x0, a * (x - x0) - sin * w, rtol=1e-10)
        assert np.allclose(field.noise, (sin * (x - x0) + a * w) / PATH.std, rtol=1e-10)


def test_a_network_says_the_whole_velocity(key):
    net = models.make("mlp", shape=(2,), width=8, depth=1, joined=2, key=key)
    net = jax.tree.map(lambda leaf: leaf + 0.1 if eqx.is_inexact_array(leaf) else leaf, net)
    gen, x, x0 = Generator(PATH, net, predicts="velocity"), jnp.array([0.2, -0.1]), jnp.array([0.5, 0.3])
    seen = jnp.r_[PATH.input_scale(0.4, 1.0) * x, x0]
    assert np.allclose(gen(0.4, x, x0=x0).velocity, net(seen, PATH.signal(0.4), None), rtol=1e-5)


def test_the_steps_end_at_the_highest_log_snr_and_jump():
    """Uniform in log SNR from the source, then onto the prediction: as many calls as steps."""
    grid = grids.log_snr(PATH, 20, high=6.0)
    assert grid.steps == 20 and grid.s[-1] == 0 and grid.clean
    assert np.isclose(grid.log_snr[0], math.log(0.005 / (50 / 255)), atol=1e-4)
    assert np.allclose(np.diff(grid.log_snr[:-1]), (6 - grid.log_snr[0]) / 19)


GEN = MixturePosterior(PATH, MEANS, SPREADS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanReverting(std=0.0), "std must be positive, got 0.0"),
        (lambda: MeanReverting(std=float("nan")), "std must be positive"),
        (lambda: MeanReverting(end=1.0), r"end must lie in \(0, 1\), got 1.0"),
        (lambda: MeanReverting(schedule="cosin"), "did you mean 'cosine'"),
        (lambda: MeanReverting.tabulated([0.0]), "at least 2 finite values"),
        (lambda: MeanReverting.tabulated([0.0, jnp.nan]), "at least 2 finite values"),
        (lambda: MeanReverting.tabulated([0.1, -0.2]), "must begin at 0 or below"),
        (lambda: MeanReverting.tabulated([0.0, -0.2, -0.1]), "and fall"),
        (lambda: MeanReverting(schedule=(0.0, 0.5)), "must rise from 0 or above to 1"),
        (lambda: PATH.perturb(jr.key(0), 0.5, jnp.zeros(2)), "x0 is missing: MeanReverting starts from a condition"),
        (lambda: GEN(0.5, jnp.zeros(2)), "x0 is missing"),
        (lambda: sample(GEN, dpmpp(PATH, GRID), 4, key=jr.key(0), shape=(2,)), "x0 is missing"),
        (
            lambda: sample(GEN, dpmpp(PATH, GRID), 4, key=jr.key(0), shape=(2,), x0=jnp.zeros((3, 2))),
            "x0 must have a leading axis of n=4",
        ),
        (lambda: grids.log_snr(PATH, 5, low=-5.0), "outside the path"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_starts_of_another_shape_are_refused(key):
    path = MeanReverting()
    gen = Generator(path, lambda x, signal, cond: x[..., :2])
    plan = dpmpp(path, grids.log_snr(path, 4), order=2)
    for x0 in (jnp.zeros((4, 1)), jnp.zeros((4, 3)), jnp.zeros(4)):
        with pytest.raises(InputError, match="x0 must hold samples of shape"):
            sample(gen, plan, 4, key=key, shape=(2,), x0=x0)
