import math
import subprocess
import sys

import numpy as np
import pytest
from plain_loop import mixture_data, run

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.generator import moments_in_float64
from kinema.generate.path import GAUSSIAN, VE, VP, Linear
from kinema.generate.path.path import in_float64
from kinema.generate.solver import grids
from kinema.generate.solver.phi import decay_moments
from kinema.generate.solver.registry import SOLVERS

PATH = VE(0.01, 50.0)
MIXTURE = {"weights": [0.4, 0.6], "means": [[-1.0], [1.2]], "variances": [0.1, 0.3]}
PLANS = {
    "euler": (lambda g: solver.euler(PATH, g), 1),
    "euler in t": (lambda g: solver.euler(PATH, g, extrapolates="velocity"), 1),
    "heun": (lambda g: solver.heun(PATH, g), 2),
    "heun on data": (lambda g: solver.heun(PATH, g, extrapolates="data"), 2),
    "heun in t": (lambda g: solver.heun(PATH, g, extrapolates="velocity"), 2),
    "2M midpoint": (lambda g: solver.dpmpp(PATH, g), 2),
    "2M heun": (lambda g: solver.dpmpp(PATH, g, variant="heun"), 2),
    "3M": (lambda g: solver.dpmpp(PATH, g, order=3, start="heun"), 3),
    "3M as published": (lambda g: solver.dpmpp(PATH, g, order=3, exact=False), 2),
    "DPM-Solver 3": (lambda g: solver.dpmpp(PATH, g, order=3, form="noise", start="heun"), 3),
    "LMS 3": (lambda g: solver.adams(PATH, g, order=3, start="heun"), 3),
    "LMS 4": (lambda g: solver.adams(PATH, g, start="heun"), 4),
    "AB 3 in t": (lambda g: solver.adams(PATH, g, order=3, extrapolates="velocity", start="heun"), 3),
    "DEIS 3": (lambda g: solver.deis(PATH, g, start="heun"), 3),
    "UniPC 1": (lambda g: solver.unipc(PATH, g, order=1, lower_final=False), 2),
    "UniPC 2": (lambda g: solver.unipc(PATH, g, order=2, lower_final=False), 3),
    "UniPC 3": (lambda g: solver.unipc(PATH, g, order=3, lower_final=False), 4),
}


def normal_cdf(x):
    return 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))


def flow_exactly(x, before, after):
    """The probability flow of a mixture on the line keeps quantiles: F_after(x') = F_before(x), by bisection."""

    def cdf(x, s):
        gap = x[:, None] - np.ravel(MIXTURE["means"])
        return normal_cdf(gap / np.sqrt(np.array(MIXTURE["variances"]) + s**2)) @ np.array(MIXTURE["weights"])

    level, low, high = cdf(x, before), np.full(len(x), -50.0), np.full(len(x), 50.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = cdf(middle, after) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def exact_field(plan):
    a, _, s = (dict(zip(plan.t, c)) for c in in_float64(PATH.coefficients, plan.t))
    rate = math.log(PATH.sigma_max / PATH.sigma_min)  # ds/dt = -rate s

    def field(t, x):
        data = mixture_data(MIXTURE, a[t], s[t], x)
        noise = (x - a[t] * data) / s[t]
        return {"data": data, "noise": noise, "velocity": -rate * s[t] * noise}[plan.extrapolates]

    return field


def error(build, steps, top=10.0, bottom=0.05):
    """Largest error at noise ratio `bottom` of the flow from `top`."""
    plan = build(grids.karras(PATH, steps, low=-math.log(top), high=-math.log(bottom), clean=False))
    x = np.linspace(-1.5, 1.5, 12) * top
    return np.abs(run(plan, exact_field(plan), x[:, None])[:, 0] - flow_exactly(x, top, bottom)).max()


@pytest.mark.parametrize("name", PLANS)
def test_order_on_a_two_component_mixture(name):
    build, order = PLANS[name]
    steps = {1: 60, 2: 80, 3: 120, 4: 160}[order]
    assert abs(math.log2(error(build, steps) / error(build, 2 * steps)) - order) < 0.2


@pytest.mark.parametrize(("start", "order"), [("euler", 2), ("heun", 3)])
def test_the_start_limits_the_order(start, order):
    for build in (lambda g: solver.adams(PATH, g, start=start), lambda g: solver.dpmpp(PATH, g, order=3, start=start)):
        slope = math.log2(error(build, 80, top=1.0) / error(build, 160, top=1.0))
        assert abs(slope - order) < 0.2


def gaussian_gain(path, plan, variance):
    """The field that the plan extrapolates, divided by x, for data N(0, variance)."""
    moments = moments_in_float64(path, plan.t)
    data = moments.a * variance / (moments.a**2 * variance + moments.s**2)
    noise = (1 - moments.a * data) / moments.s
    velocity = moments.da * data + moments.s_ds / moments.s * noise
    return {"data": data, "noise": noise, "velocity": velocity}[plan.extrapolates]


def score_gain(path, plan, variance):
    moments = moments_in_float64(path, plan.t)
    return -1 / (moments.a**2 * variance + moments.s**2)


def final_variance(path, plan, variance):
    """Variance of the last x, from that of the path at the start, by the plan's own linear algebra."""
    size = 2 + plan.history
    law = np.zeros((size, size))
    law[:2, :2] = plan.grid.a[0] ** 2 * variance + plan.grid.s[0] ** 2
    for j, (gain, score) in enumerate(zip(gaussian_gain(path, plan, variance), score_gain(path, plan, variance))):
        matrix = solver.companion(plan, j, gain, score).real
        lifted, added = matrix[:, 0] / plan.r[j] * plan.n[j], np.zeros(size)
        added[0] = plan.c[j]
        added[1] = plan.c[j] * (plan.M[j, 0] == plan.M[j, 1]).all()
        law = matrix @ law @ matrix.T + np.outer(lifted, lifted) + np.outer(added, added)
    return law[0, 0]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("path", [VP(), PATH, Linear()], ids=["vp", "ve", "linear"])
def test_point_data_keeps_its_law_exactly(path, eta):
    """With data at one point the prediction is constant, so exact kernels must give s^2 after any number of steps."""
    grid = grids.log_snr(path, 6, low=-3.0, high=3.0, clean=False)
    builders = [
        lambda: solver.ancestral(path, grid, eta=eta),
        lambda: solver.dpmpp(path, grid, order=2, eta=eta),
        lambda: solver.dpmpp(path, grid, order=3, eta=eta),
    ]
    for build in builders:
        plan = build()
        assert np.isclose(final_variance(path, plan, 0.0), grid.s[-1] ** 2, rtol=1e-10)
        mean = run(plan, lambda t, x: np.array([0.7]), np.array([0.7 * grid.a[0]]), np.zeros((9, 1)))
        assert np.isclose(mean[0], 0.7 * grid.a[-1], rtol=1e-10)


STOCHASTIC = {
    "ancestral": (lambda p, g: solver.ancestral(p, g), 1),
    "ancestral forward": (lambda p, g: solver.ancestral(p, g, variance="forward"), 1),
    "reverse diffusion": (lambda p, g: solver.reverse_diffusion(p, g), 1),
    "Euler-Maruyama": (lambda p, g: solver.euler_maruyama(p, g), 1),
    "Euler-Maruyama, half level": (lambda p, g: solver.euler_maruyama(p, g, noise_level=0.5), 1),
    "Euler-Maruyama, own level": (lambda p, g: solver.euler_maruyama(p, g, noise_level=lambda t: 1 + t), 1),
    "SDE 2M": (lambda p, g: solver.dpmpp(p, g, eta=1.0), 2),
    "SDE 2M, noise form": (lambda p, g: solver.dpmpp(p, g, eta=1.0, form="noise"), 2),
    "SDE 3M": (lambda p, g: solver.dpmpp(p, g, order=3, eta=0.7), 2),
    "churn": (lambda p, g: solver.churn(p, g, amount=2.0), 2),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_reach_the_law_of_gaussian_data(name):
    build, order = STOCHASTIC[name]
    path, variance = VP(), 0.5
    errors = []
    for steps in (80, 160):
        grid = grids.log_snr(path, steps, low=-4.0, high=2.0, clean=False)
        truth = grid.a[-1] ** 2 * variance + grid.s[-1] ** 2
        errors.append(abs(final_variance(path, build(path, grid), variance) - truth))
    assert errors[-1] < 2e-2
    assert math.log2(errors[0] / errors[1]) > order - 0.2


def test_restarts_forget_the_error_made_above():
    """Five times over the same range: the error of Heun contracts to that of the range alone."""
    grid = grids.karras(PATH, 8, low=-math.log(10), high=-math.log(0.05), clean=False)
    truth = 0.5 + grid.s[-1] ** 2

    def off(plan):
        return abs(final_variance(PATH, plan, 0.5) - truth)

    restarted = solver.restart(PATH, grid, low=0.05, high=8.0, inner=24, repeats=3)
    assert off(restarted) < off(solver.heun(PATH, grid)) / 4
    assert restarted.nfe == 2 * 8 + 3 * 2 * 24
    assert restarted.whole.sum() == 8 and (np.diff(restarted.after[restarted.whole]) == 1).all()


def test_langevin_corrector_holds_the_law_at_fixed_time():
    """x <- x + e score + sqrt(2e) xi on N(0, V) has the stationary variance V / (1 - e / 2V), by algebra."""
    path, variance, snr = VP(), 0.5, 0.3
    grid = grids.from_times(path, [0.5, 0.6])
    plan = solver.predictor_corrector(path, solver.euler(path, grid), snr=snr, corrections=400)
    law = grid.a[0] ** 2 * variance + grid.s[0] ** 2
    step = 2 * (snr * grid.s[0]) ** 2
    corrected = law / (1 - step / (2 * law))
    shrink = solver.companion(plan, 400, gaussian_gain(path, plan, variance)[400])[0, 0].real
    assert np.isclose(final_variance(path, plan, variance), shrink**2 * corrected, rtol=1e-6)
    assert plan.nfe == 401 and plan.whole.sum() == 1 and plan.t[400] == plan.t[0]


@pytest.mark.parametrize(
    "build",
    [
        lambda g: solver.dpmpp(PATH, g, order=3),
        lambda g: solver.dpmpp(PATH, g, order=2, eta=0.5, lower_final=True),
        lambda g: solver.adams(PATH, g, order=4),
        lambda g: solver.adams(PATH, g, order=3, variable=False),
        lambda g: solver.deis(PATH, g, order=3, lower_final=True),
        lambda g: solver.unipc(PATH, g, order=3),
        lambda g: solver.unipc(PATH, g, order=2, corrector=False),
    ],
    ids=["3M", "SDE 2M", "LMS", "PLMS", "DEIS", "UniPC", "UniP"],
)
def test_fallback_rows_are_those_of_a_fresh_start(build):
    """Emptying the history at point i is to start anew there, whatever the solver."""
    grid = grids.karras(PATH, 9)
    whole, i = build(grid), 4
    fresh = build(grids.Grid(grid.times[i:], grid.a[i:], grid.b[i:], grid.s[i:], grid.clean))
    shallow = (*whole.fallback, whole)
    for age in range(fresh.nfe):
        rows = shallow[min(age, len(whole.fallback))]
        assert np.allclose(rows.M[i + age], fresh.M[age], rtol=1e-12, atol=1e-14), age
        assert rows.c[i + age] == fresh.c[age]


def test_a_heun_start_is_heun_and_costs_nothing():
    """Row 1 holds what Heun's second stage makes of point 1, then the two-step method from there."""
    grid = grids.karras(PATH, 6)
    plan, plain, heun = solver.adams(PATH, grid, start="heun"), solver.adams(PATH, grid), solver.heun(PATH, grid)
    assert plan.nfe == plain.nfe
    corrected, two_step = heun.M[1, 0], plain.M[1, 0]
    assert np.isclose(plan.M[1, 0, 1], two_step[0] * corrected[1])
    assert np.allclose(plan.M[1, 0, 2:4], two_step[0] * corrected[2:] + two_step[2:4])
    assert np.allclose(plan.M[2:], plain.M[2:]) and np.allclose(plan.M[0, 0], plain.M[0, 0])
    assert np.allclose(plan.fallback[0].M[1], plain.fallback[0].M[1])


def test_one_method_has_many_names():
    grid = grids.karras(PATH, 7)
    same = [solver.euler(PATH, grid), solver.ancestral(PATH, grid, eta=0.0), solver.dpmpp(PATH, grid, order=1)]
    assert all(np.allclose(plan.M, same[0].M, rtol=1e-12) for plan in same)
    two_m, unip = solver.dpmpp(PATH, grid), solver.unipc(PATH, grid, order=2, corrector=False, lower_final=False)
    assert np.allclose(two_m.M, unip.M, rtol=1e-12)
    deis, dpm = solver.deis(PATH, grid, order=3), solver.dpmpp(PATH, grid, order=3, form="noise", variant="heun")
    assert np.allclose(deis.M, dpm.M, rtol=1e-12)
    one = solver.adams(PATH, grid, order=1)
    assert np.allclose(one.M, solver.euler(PATH, grid, extrapolates="noise").M, rtol=1e-12)


def test_fixed_weights_are_the_tabulated_ones():
    grid = grids.from_noise_ratios(PATH, np.arange(11, 1, -1.0))
    plan = solver.adams(PATH, grid, order=5, variable=False)
    assert np.allclose(plan.M[8, 0, 2:] / -1.0, np.array([1901, -2774, 2616, -1274, 251]) / 720)
    assert np.allclose(plan.M, solver.adams(PATH, grid, order=5).M, rtol=1e-9)


@pytest.mark.parametrize("z", [1e-8, 1e-4, 0.3, 0.99, 1.01, 5.0, 30.0, -1e-6, -0.5, -1.5, -6.0])
def test_moments_have_all_their_digits(z):
    points, weights = np.polynomial.legendre.leggauss(120)
    u = (points + 1) / 2
    truth = [np.sum(weights / 2 * z * np.exp(-z * (1 - u)) * u**q) for q in range(5)]
    assert np.allclose(decay_moments(z, 5), truth, rtol=2e-13)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=["vp", "linear"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_name_makes_a_plan(name, path):
    plan = solver.make(name, path, 6)
    expected = {"heun": 11, "churn": 11, "predictor-corrector": 12}.get(name, 6)
    if path.coefficients(0.0)[0] == 0 and name in ("heun", "churn"):
        expected = 11
    assert plan.nfe == (expected if name != "restart" else 11 + 4 * 6)
    assert plan.grid.steps == 6 and plan.grid.s[-1] == 0 and plan.whole[-1] and plan.after[-1] == 6
    assert plan.stochastic == (name in NOISY)


NOISY = (
    *("ancestral", "churn", "restart", "sde-dpmpp-2m", "reverse-diffusion", "euler-maruyama"),
    "predictor-corrector",
)


@pytest.mark.parametrize("path_name", GAUSSIAN)
def test_a_perfect_prediction_of_one_point_is_reached(path_name):
    """Data at one point: every deterministic solver of every order ends on it from anywhere, on every path."""
    path, point = GAUSSIAN[path_name](), np.array([[0.7]])
    for name in SOLVERS:
        plan = solver.make(name, path, 6)
        if name in NOISY or (plan.extrapolates == "velocity" and path_name != "linear"):  # exact on straight lines
            continue
        moments = dict(zip(plan.t, np.array(moments_in_float64(path, plan.t)).T))

        def field(t, x, moments=moments, plan=plan):
            a, _, s, da, _, s_ds = moments[t]
            noise = (x - a * point) / s
            return {"data": point, "noise": noise, "velocity": da * point + s_ds / s * noise}[plan.extrapolates]

        assert np.allclose(run(plan, field, np.array([[1.3]])), point, atol=1e-9), name


def test_stability_of_euler_and_its_growth():
    """X' = gain X in kappa: Euler multiplies by 1 + gain dkappa, two-step Adams is stable to -1 in steady state."""
    grid = grids.from_noise_ratios(PATH, np.arange(8, 1, -1.0))
    euler = solver.euler(PATH, grid, extrapolates="noise")
    assert np.isclose(solver.growth(euler, 0.5), 0.5**6)
    assert np.isclose(solver.spectral_radius(euler, 3, 1.9), 0.9)
    plms = solver.adams(PATH, grid, order=2, variable=False)
    assert solver.spectral_radius(plms, 4, 0.99) < 1 < solver.spectral_radius(plms, 4, 1.01)


def test_importing_solvers_does_not_import_jax():
    code = "import sys, kinema.generate.solver; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GRID = grids.karras(PATH, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solver.make("dpmp-2m", PATH, 5), "did you mean 'dpmpp-2m'"),
        (lambda: solver.make("euler", PATH, 5, grid="karas"), "did you mean 'karras'"),
        (lambda: solver.make("unipc", PATH, 5, ordr=3), "did you mean 'order'"),
        (lambda: solver.make("euler", PATH, 5, grid=GRID), "steps=5 was given with a grid of 6"),
        (lambda: solver.make("euler", PATH), "steps is missing"),
        (lambda: solver.make("euler", PATH, 0), "at least 1, got 0"),
        (lambda: solver.dpmpp(PATH, GRID, order=4), "order must be a whole number from 1 to 3, got 4"),
        (lambda: solver.adams(PATH, GRID, order=6), "from 1 to 5, got 6"),
        (lambda: solver.adams(PATH, GRID, order=0), "got 0"),
        (lambda: solver.adams(PATH, GRID, extrapolates="data"), "'noise' or 'velocity'"),
        (lambda: solver.unipc(PATH, GRID, variant="bh3"), "'bh1', 'bh2' or 'exact'"),
        (lambda: solver.dpmpp(PATH, GRID, variant="mid"), "'midpoint' or 'heun'"),
        (lambda: solver.dpmpp(PATH, GRID, form="score"), "form must be"),
        (lambda: solver.dpmpp(PATH, GRID, eta=-1.0), "eta must be 0, or positive"),
        (lambda: solver.dpmpp(PATH, GRID, eta=1.0, start="heun"), "corrects a point without noise"),
        (lambda: solver.dpmpp(PATH, GRID, start="rk"), "start must be"),
        (lambda: solver.euler(PATH, GRID, extrapolates="score"), "cannot hold 'score'"),
        (lambda: solver.heun(PATH, GRID, extrapolates="score"), "cannot hold 'score'"),
        (lambda: solver.deis(Linear(), grids.uniform_time(Linear(), 5)), "holds no data"),
        (lambda: solver.churn(PATH, GRID, amount=4.0), r"in \[0, 2.485\] for 6 steps .* gamma=0.667"),
        (lambda: solver.churn(PATH, GRID, noise=0.0), "noise must be positive"),
        (lambda: solver.churn(PATH, GRID, low=2.0, high=1.0), "low must be in"),
        (lambda: solver.restart(PATH, GRID, low=2.0, high=1.0), "below high"),
        (lambda: solver.restart(PATH, GRID, high=0.009, low=0.001), "below every"),
        (lambda: solver.restart(PATH, GRID, repeats=0), "repeats must be"),
        (lambda: solver.ancestral(PATH, GRID, eta=-0.1), "eta must not be negative"),
        (lambda: solver.ancestral(PATH, GRID, variance="big"), "'posterior' or 'forward'"),
        (lambda: solver.euler_maruyama(PATH, GRID, noise_level="forward"), "noise_level must be"),
        (lambda: solver.euler_maruyama(PATH, GRID, noise_level=-1.0), "not negative"),
        (lambda: solver.euler_maruyama(Linear(), grids.uniform_time(Linear(), 5)), "finite"),
        (lambda: solver.predictor_corrector(PATH, solver.dpmpp(PATH, GRID)), "remembers past predictions"),
        (lambda: solver.predictor_corrector(PATH, solver.euler(PATH, GRID), rule="snr"), "rule must be"),
        (lambda: solver.predictor_corrector(PATH, solver.euler(PATH, GRID), snr=0.0), "snr must be positive"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
