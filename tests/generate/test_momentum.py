"""Heavy ball and its generalizations: coefficients, orders, a stiff system in closed form, the published code."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from plain_loop import mixture_data, run
from test_solvers import exact_field, flow_exactly

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.path import VE, VP, Linear
from kinema.generate.solver import grids
from kinema.generate.solver.momentum import generalized_weights, split

PATH = VE(0.01, 50.0)
EQUAL = grids.from_noise_ratios(PATH, np.arange(31, 1, -1.0))
UNEVEN = grids.karras(PATH, 9)
FOLDER = Path(__file__).parent / "peers"
NUMBERS = (0.4, 0.8, 1.5, 1.8, 2.5, 3.3, 3.8, 4.5)


def tabulated(order, b):
    """The published weights of velocities, over b."""
    rows = {
        1: ([b], 1),
        2: ([2 + b, b - 2], 2),
        3: ([18 + 5 * b, 8 * b - 24, 6 - b], 12),
        4: ([46 + 9 * b, 19 * b - 78, 42 - 5 * b, b - 10], 24),
        5: ([1650 + 251 * b, 646 * b - 3420, 2880 - 264 * b, 106 * b - 1380, 270 - 19 * b], 720),
    }
    weights, whole = rows[order]
    return np.array([float(w / whole / b) for w in weights])


@pytest.mark.parametrize("beta", [Fraction(1, 10), Fraction(1, 2), Fraction(9, 10), Fraction(1)])
def test_weights_are_the_published_ones_and_sum_to_one(beta):
    for order in range(1, 6):
        weights = generalized_weights(order, float(beta))
        np.testing.assert_allclose(weights, tabulated(order, beta), rtol=1e-12)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("variable", [False, True])
def test_a_whole_number_is_the_plain_method_to_the_bit(variable):
    for number in (1, 2, 3, 4, 5.0):
        plain = solver.adams(PATH, UNEVEN, order=int(number), variable=variable)
        builders = [lambda **o: solver.ghvb(PATH, UNEVEN, start="euler", **o)]
        if number > 1 or not variable:
            builders += [
                lambda **o: solver.heavy_ball(PATH, UNEVEN, **o),
                lambda **o: solver.nesterov(PATH, UNEVEN, **o),
            ]
        for build in builders:
            plan = build(number=number, variable=variable)
            x = np.array([[1.3, -40.0]])
            assert np.array_equal(run(plan, lambda t, x: np.sin(x), x), run(plain, lambda t, x: np.sin(x), x))


@pytest.mark.parametrize("number", NUMBERS)
def test_equal_steps_and_a_long_run_give_the_published_weights(number):
    real, fixed = (solver.ghvb(PATH, EQUAL, number=number, variable=v) for v in (True, False))
    tail = (1 - split(number)[1]) ** 28 * 28**4
    np.testing.assert_allclose(real.M[-1], fixed.M[-1], rtol=max(1e-9, tail))
    assert (real.B[1:] == fixed.B[1:]).all() and real.E[0] == 0


@pytest.mark.parametrize("start", ["euler", "heun"])
def test_real_steps_are_exact_for_polynomials_on_any_grid(start):
    """dX/dkappa = q kappa^(q-1) from the start on, whatever the steps, as far as the history reaches."""
    kappa = UNEVEN.noise_ratio
    for number in (1.8, 2.5, 3.3, 4.5):
        plan = solver.ghvb(PATH, UNEVEN, number=number, start=start)
        order = split(number)[0]
        for i, q in itertools.product(range(order - 1, UNEVEN.steps - 1), range(order)):
            h = [0.0]
            for j in range(i + 1):
                h.append(plan.B[j] * kappa[j] ** q + plan.E[j] * h[-1])
            gain = plan.M[i, 0, 2:] @ np.array(h[: -order - 1 : -1])
            if plan.M[i, 0, 1] == 0:  # else the row corrects the start as well
                truth = (kappa[i + 1] ** (q + 1) - kappa[i] ** (q + 1)) / (q + 1)
                np.testing.assert_allclose(gain, truth, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("build", [solver.ghvb, solver.heavy_ball, solver.nesterov])
@pytest.mark.parametrize("path", [VP(), Linear()], ids=["vp", "linear"])
def test_a_constant_field_is_integrated_exactly(build, path):
    """The velocity starts at the field, not at 0: X' = X + c dkappa, or x' = x + c dt."""
    velocity = isinstance(path, Linear)
    grid = grids.uniform_time(path, 7, stop=0.9)
    for number in NUMBERS:
        plan = build(path, grid, number=number, extrapolates="velocity" if velocity else "noise")
        x = run(plan, lambda t, x: np.array([2.0]), np.array([3.0]))
        if velocity:
            truth = 3 + 2 * (grid.times[-1] - grid.times[0])
        else:
            truth = grid.a[-1] * (3 / grid.a[0] + 2 * (grid.noise_ratio[-1] - grid.noise_ratio[0]))
        np.testing.assert_allclose(x, truth, rtol=1e-9)


def error(build, steps, grid):
    x = np.linspace(-15, 15, 12)[:, None]
    plan = build(grid(steps))
    return np.abs(run(plan, exact_field(plan), x)[:, 0] - flow_exactly(x[:, 0], 10.0, 0.05)).max()


def karras(steps):
    return grids.karras(PATH, steps, low=-math.log(10), high=-math.log(0.05), clean=False)


def even(steps):
    return grids.from_noise_ratios(PATH, np.linspace(10, 0.05, steps + 1))


PUBLISHED = {"variable": False, "start": "euler"}
SLOPES = {
    "published 2.5": (lambda g: solver.ghvb(PATH, g, number=2.5, **PUBLISHED), 80, 2.0),
    "published 3.8": (lambda g: solver.ghvb(PATH, g, number=3.8, **PUBLISHED), 80, 2.0),
    "published 1.5": (lambda g: solver.ghvb(PATH, g, number=1.5, **PUBLISHED), 160, 2.0),
    "published 0.5": (lambda g: solver.ghvb(PATH, g, number=0.5, **PUBLISHED), 80, 1.0),
    "HB 3.8": (lambda g: solver.heavy_ball(PATH, g, number=3.8, variable=False), 80, 1.0),
    "Nesterov 3.8": (lambda g: solver.nesterov(PATH, g, number=3.8, variable=False), 80, 1.0),
    "3.8": (lambda g: solver.ghvb(PATH, g, number=3.8), 80, 4.0),
}


@pytest.mark.parametrize("name", SLOPES)
def test_orders(name):
    """On a Karras grid the published weights are of order 2 at most; those of the real steps have their own."""
    build, steps, order = SLOPES[name]
    assert abs(math.log2(error(build, steps, karras) / error(build, 2 * steps, karras)) - order) < 0.15


def test_published_weights_need_equal_steps():
    build = SLOPES["published 2.5"][0]
    assert math.log2(error(build, 80, even) / error(build, 160, even)) > 3


def test_a_stiff_system_in_closed_form():
    """x' = [[0, 1], [-9, -10]] x to T = 3 in 26 equal steps: two-step Adams grows, momentum damps."""
    grid, rate = grids.uniform_time(Linear(), 26, start=0.0, stop=1.0), 3 * np.array([[0.0, 1.0], [-9.0, -10.0]])
    truth = math.exp(-27) * np.array([1.0, -9.0]) / 8 + 9 * math.exp(-3) * np.array([-1.0, 1.0]) / 8
    errors = {}
    for name, build, number in (
        ("AB 2", solver.ghvb, 2),
        ("Euler", solver.ghvb, 1),
        ("HB 1.9", solver.heavy_ball, 1.9),
        ("HB 1.8", solver.heavy_ball, 1.8),
        ("GHVB 1.9", solver.ghvb, 1.9),
        ("GHVB 1.8", solver.ghvb, 1.8),
    ):
        options = {"start": "euler"} if build is solver.ghvb else {}
        plan = build(Linear(), grid, number=number, extrapolates="velocity", variable=False, **options)
        x = run(plan, lambda t, x: rate @ x, np.array([-1.0, 0.0]))
        errors[name] = np.linalg.norm(x - truth)
    published = {"AB 2": 1.438, "Euler": 0.0136, "HB 1.9": 0.00286, "HB 1.8": 0.00632, "GHVB 1.9": 0.0473}
    for name, value in (published | {"GHVB 1.8": 0.00072}).items():
        np.testing.assert_allclose(errors[name], value, rtol=0.01, err_msg=name)


PEER = json.loads((FOLDER / "momentum.json").read_text())
TABLE = json.loads((FOLDER / "diffusers.json").read_text())["alphas_cumprod"]
BUILDERS = {"ghvb": solver.ghvb, "hb": solver.heavy_ball, "nesterov": solver.nesterov}


@pytest.mark.parametrize("name", BUILDERS)
def test_equals_the_published_code(name):
    results = {key: value for key, value in PEER["results"].items() if key.startswith(f"{name}-")}
    assert len(results) == 16
    for key, reference in results.items():
        number, steps = key.split("-")[1:]
        grid = grids.discrete(TABLE, timesteps=PEER["timesteps"][steps])
        options = {"start": "euler"} if name == "ghvb" else {}
        plan = BUILDERS[name](None, grid, number=float(number), variable=False, **options)

        def noise(t, x, grid=grid):
            i = int(np.argmin(np.abs(grid.times - t)))
            return (x - grid.a[i] * mixture_data(PEER["mixture"], grid.a[i], grid.s[i], x)) / grid.s[i]

        x = run(plan, noise, np.array(PEER["start"]))
        assert np.abs(x - reference).max() < 1e-12 * np.abs(reference).max(), key


def test_heavy_ball_on_data_damps_the_two_step_bracket():
    """v' = (1 - b) v + b B with the bracket B of DPM-Solver++ 2M, which v is in the first step of order 2."""
    path, beta, rng = VP(), 0.7, np.random.default_rng(0)
    grid = grids.log_snr(path, 6, low=-3.0, high=2.0, clean=False)
    data = dict(zip(grid.times, rng.normal(size=(7, 1))))
    plan = solver.heavy_ball(path, grid, number=1 + beta, extrapolates="data")
    x, v, lam = np.array([0.3]), None, grid.log_snr
    for i in range(6):
        h, m = lam[i + 1] - lam[i], data[grid.times[i]]
        if i > 0:
            bracket = m + (m - data[grid.times[i - 1]]) * h / (2 * (lam[i] - lam[i - 1]))
            v = bracket if v is None else (1 - beta) * v + beta * bracket
        step = m if v is None else v
        x = grid.s[i + 1] / grid.s[i] * x - grid.a[i + 1] * np.expm1(-h) * step
    np.testing.assert_allclose(run(plan, lambda t, x: data[t], np.array([0.3])), x, rtol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda g: solver.ghvb(PATH, g, number=3.3, start="euler"),
        lambda g: solver.ghvb(PATH, g, number=0.6, variable=False),
        lambda g: solver.heavy_ball(PATH, g, number=2.5),
        lambda g: solver.heavy_ball(PATH, g, number=1.5, extrapolates="data"),
        lambda g: solver.nesterov(PATH, g, number=2.5),
    ],
    ids=["GHVB", "GHVB order 1", "HB", "HB on data", "Nesterov"],
)
def test_fallback_rows_are_those_of_a_fresh_start(build):
    whole, i = build(UNEVEN), 3
    fresh = build(grids.Grid(*(getattr(UNEVEN, name)[i:] for name in ("times", "a", "b", "s")), UNEVEN.clean))
    shallow = (*whole.fallback, whole)
    for age in range(fresh.nfe):
        rows = shallow[min(age, len(whole.fallback))]
        assert np.allclose(rows.M[i + age, 0], fresh.M[age, 0], rtol=1e-9, atol=1e-12), age
        assert (rows.B[i + age], rows.E[i + age]) == (fresh.B[age], fresh.E[age])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solver.ghvb(PATH, UNEVEN, number=0.0), r"number must be in \(0, 5\], got 0"),
        (lambda: solver.heavy_ball(PATH, UNEVEN, number=5.1), "got 5.1"),
        (lambda: solver.ghvb(PATH, UNEVEN, number=3.001), "at least 0.01 above a whole one, got 3.001"),
        (lambda: solver.nesterov(PATH, UNEVEN, number=float("nan")), "got nan"),
        (lambda: solver.ghvb(PATH, UNEVEN, extrapolates="data"), "'noise' or 'velocity', got 'data'"),
        (lambda: solver.ghvb(PATH, UNEVEN, start="rk"), "start must be"),
        (lambda: solver.heavy_ball(PATH, UNEVEN, number=2.5, extrapolates="data"), r"must be in \(1, 2\] on data"),
        (lambda: solver.ghvb(Linear(), grids.uniform_time(Linear(), 4)), "holds no data"),
        (lambda: solver.number_for(-1.0), "not negative, got -1"),
        (lambda: solver.make("ghvb", PATH, 6, numbr=2), "did you mean 'number'"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
