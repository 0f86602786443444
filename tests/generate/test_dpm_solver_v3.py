"""DPM-Solver-v3 against its published class, and where its fit is perfect or idle."""

import json
from pathlib import Path

import numpy as np
import pytest
from plain_loop import mixture_data, run

from kinema.errors import InputError, StoreCorrupt
from kinema.generate import solver
from kinema.generate.path import VE, VP, Linear
from kinema.generate.solver import ModelStatistics, dpm_solver_v3, grids
from kinema.motion.weights import save_weights

PEER = json.loads((Path(__file__).parent / "peers" / "dpm_solver_v3.json").read_text())
PATH = VE(sigma_min=0.01, sigma_max=90.0)
VARIANCES, MEAN = np.array([0.04, 1.0, 4.0]), np.array([1.0, -2.0, 0.5])


def peer_grid(lam):
    return grids.Grid(
        np.linspace(0, 0.9, len(lam)), (1 + np.exp(-2 * lam)) ** -0.5, 0 * lam, (1 + np.exp(2 * lam)) ** -0.5
    )


@pytest.mark.parametrize("kind", ["none", "full", "pseudo-predictor", "pseudo-corrector", "early"])
def test_equals_the_published_class(kind):
    lam = np.linspace(*PEER["ends"], 31)
    statistics = ModelStatistics(lam, *(np.array(PEER[name]) for name in "lsb"))
    options = {
        "none": {"corrector": "none"},
        "pseudo-predictor": {"pseudo_predictor": True, "lower_final": False},
        "pseudo-corrector": {"pseudo_corrector": True},
        "early": {"corrector": "early"},
    }.get(kind, {})
    for steps in (5, 8):
        grid = peer_grid(lam[PEER["indices"][str(steps)]])
        if kind == "early":  # the half of the steps is told by the path's own time
            times = VP().time_of_log_snr(grid.log_snr)
            grid = grids.Grid(np.asarray(times, float), grid.a, grid.b, grid.s)

        def data(t, x, grid=grid):
            i = int(np.argmin(np.abs(grid.times - t)))
            return mixture_data(PEER["mixture"], grid.a[i], grid.s[i], x)

        for order in (1, 2, 3):
            plan = dpm_solver_v3(None, grid, statistics=statistics, order=order, refine=1, **options)
            reference = PEER["results"][f"{steps}-{order}-{kind}"]
            x = run(plan, data, np.array(PEER["start"]))
            assert np.abs(x - reference).max() < 1e-12 * np.abs(reference).max(), (steps, order)


def gaussian_statistics(n, low=-4.0, high=4.0):
    """Of N(MEAN, VARIANCES): l = kappa^2 / (c + kappa^2), f = -l mean, so s = 0 and b = -l' mean."""
    lam = np.linspace(low, high, n + 1)
    linear = 1 / (1 + VARIANCES * np.exp(2 * lam)[:, None])
    return ModelStatistics(lam, linear, 0 * linear, 2 * linear * (1 - linear) * MEAN)


def gaussian_error(statistics, grid, **options):
    start = np.array([30.0, -20.0, 60.0])
    plan = dpm_solver_v3(PATH, grid, statistics=statistics, **options)
    kappa = dict(zip(grid.times, grid.noise_ratio))

    def data(t, x):
        return MEAN + VARIANCES / (VARIANCES + kappa[t] ** 2) * (x - MEAN)

    spread = np.sqrt(VARIANCES + grid.s[:, None] ** 2)
    return np.abs(run(plan, data, start) - MEAN - (start - MEAN) * spread[-1] / spread[0]).max()


def test_gaussian_data_are_exact_in_five_steps_of_any_order():
    """Up to the trapezoid sums: a fourth with every halving, as published; on grids that are not the table's too."""
    grid = grids.log_snr(PATH, 5, low=-4.0, high=4.0, clean=False)
    errors = [
        gaussian_error(gaussian_statistics(n), grid, order=1, corrector="none", refine=1) for n in (100, 200, 400)
    ]
    np.testing.assert_allclose(errors, [2.4e-4, 6.0e-5, 1.5e-5], rtol=0.05)
    for order in (1, 2, 3, 4):
        for pseudo in (False, True):
            options = {"order": order, "pseudo_predictor": pseudo, "pseudo_corrector": pseudo}
            assert gaussian_error(gaussian_statistics(400), grid, **options) < 1e-5
    uneven = grids.karras(PATH, 6, low=-4.0, high=4.0, clean=False)
    assert gaussian_error(gaussian_statistics(400), uneven) < 1e-5
    assert gaussian_error(gaussian_statistics(400), grids.karras(PATH, 6, low=-4.0, high=4.0)) < 1e-3  # onto s = 0
    plain = {f"3M {order}": solver.dpmpp(PATH, grid, order=order) for order in (2, 3)}
    assert all(plan.nfe == 5 for plan in plain.values())


def test_a_steep_linear_part_is_that_of_each_node():
    """l jumps from 0 to 1 within a step, and exponents reach e^14: each f has its own l, and nothing overflows."""
    table = np.linspace(-7.0, 7.0, 1401)
    linear = 1 / (1 + np.exp(10 * table))
    statistics = ModelStatistics(table, linear, 0 * table, 10 * linear * (1 - linear) * 0.7)
    path = VE(sigma_min=1e-4, sigma_max=2000.0)
    grid = grids.log_snr(path, 7, low=-7.0, high=7.0, clean=False)
    rate = dict(zip(grid.times, 1 / (1 + np.exp(10 * grid.log_snr))))
    plan = dpm_solver_v3(path, grid, statistics=statistics)
    # data whose f is -0.7 l: m = (1 - l) X + 0.7 l, solved by X' - 0.7 = -l (X - 0.7)
    x = run(plan, lambda t, x: (1 - rate[t]) * x + 0.7 * rate[t], np.array([50.0]))
    fall = np.log1p(np.exp(-70.0)) / 10 - np.log1p(np.exp(70.0)) / 10
    np.testing.assert_allclose(x, 0.7 + 49.3 * np.exp(fall), rtol=1e-5)


def test_without_statistics_it_is_dpm_solver_plus_plus():
    grid = grids.karras(VP(), 7, high=4.0)
    for order, peer in (
        (1, solver.euler(VP(), grid)),
        (2, solver.dpmpp(VP(), grid, variant="heun", lower_final=True)),
        (3, solver.dpmpp(VP(), grid, order=3, variant="heun", lower_final=True)),
    ):
        plan = dpm_solver_v3(VP(), grid, order=order, corrector="none")
        ours, theirs = (run(one, lambda t, x: np.sin(3 * x + t), np.array([0.3, -1.0])) for one in (plan, peer))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert "no statistics" in plan.notes[0]


def test_noise_statistics_hold_the_noise():
    """l = 0, s = -1, b = 0 is DPM-Solver, the noise form: g is then the noise itself."""
    path, table = VP(), np.linspace(-5.0, 4.0, 3001)
    grid = grids.log_snr(path, 6, low=-4.0, high=3.0, clean=False)
    plan = dpm_solver_v3(
        path, grid, statistics=ModelStatistics(table, 0 * table, 0 * table - 1, 0 * table), order=2, corrector="none"
    )
    peer = solver.dpmpp(path, grid, form="noise", variant="heun", lower_final=True)
    coefficients = {t: (a, s) for t, a, s in zip(grid.times, grid.a, grid.s)}

    def data(t, x):
        return np.sin(x)

    def noise(t, x):
        a, s = coefficients[t]
        return (x - a * np.sin(x)) / s

    x = np.array([0.4, 2.0])
    np.testing.assert_allclose(run(plan, data, x), run(peer, noise, x), rtol=1e-6)


def test_fallback_rows_are_those_of_a_fresh_start():
    grid = grids.log_snr(PATH, 8, low=-4.0, high=4.0)
    statistics, i = gaussian_statistics(60), 3
    whole = dpm_solver_v3(PATH, grid, statistics=statistics)
    fresh = grids.Grid(*(getattr(grid, name)[i:] for name in ("times", "a", "b", "s")), grid.clean)
    fresh = dpm_solver_v3(PATH, fresh, statistics=statistics)
    for age in range(fresh.nfe):
        rows = (*whole.fallback, whole)[min(age, len(whole.fallback))]
        for name in ("M", "d", "A"):
            np.testing.assert_allclose(getattr(rows, name)[i + age], getattr(fresh, name)[age], rtol=1e-9, atol=1e-12)


def test_statistics_keep_on_disk(tmp_path):
    statistics = gaussian_statistics(20)
    statistics.save(tmp_path)
    assert (tmp_path / "statistics.safetensors").is_file()
    for place in (tmp_path, tmp_path / "statistics.safetensors"):
        loaded = ModelStatistics.load(place)
        assert all(
            np.array_equal(getattr(loaded, n), getattr(statistics, n)) for n in ("lam", "linear", "scaling", "bias")
        )
    grid = grids.log_snr(PATH, 5, low=-4.0, high=4.0, clean=False)
    by_file, by_value = (dpm_solver_v3(PATH, grid, statistics=one) for one in (str(tmp_path), statistics))
    assert np.array_equal(by_file.M, by_value.M) and by_file.M.shape == (5, 2, 5, 3)


def statistics_of(lam=(0.0, 1.0), linear=(1.0, 1.0), scaling=(0.0, 0.0), bias=(0.0, 0.0)):
    return ModelStatistics(*(np.array(column) for column in (lam, linear, scaling, bias)))


GRID = grids.log_snr(PATH, 5, low=-4.0, high=4.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpm_solver_v3(PATH, GRID, order=5), "from 1 to 4, got 5"),
        (lambda: dpm_solver_v3(PATH, GRID, corrector="half"), "one of none, full, early, late, got 'half'"),
        (lambda: dpm_solver_v3(PATH, GRID, refine=0), "refine must be"),
        (lambda: dpm_solver_v3(Linear(), grids.uniform_time(Linear(), 5)), "holds no data"),
        (lambda: dpm_solver_v3(PATH, GRID, statistics=gaussian_statistics(20, low=-3.0)), "from log-SNR -4 to 4"),
        (lambda: dpm_solver_v3(PATH, GRID, statistics="nowhere"), "no weights at nowhere"),
        (lambda: statistics_of(lam=(1.0, 0.0)), "lam must increase"),
        (lambda: statistics_of(bias=(0.0, np.nan)), "bias must be finite"),
        (lambda: statistics_of(scaling=((0.0,), (0.0,))), r"one shape .* scaling \(2, 1\)"),
        (lambda: statistics_of(lam=(1.0,)), "at least 2"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_file_of_something_else_is_refused(tmp_path):
    save_weights(tmp_path / "statistics.safetensors", {"w": np.ones(2)})
    with pytest.raises(StoreCorrupt, match="does not hold statistics, but w"):
        ModelStatistics.load(tmp_path)
