"""Where steps are stable, against closed forms: the bounds on the real axis, boundaries, Taylor polynomials."""

import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.path import VE, VP, Linear
from kinema.generate.solver import grids
from kinema.generate.solver.momentum import generalized_weights

PATH = VE(0.01, 50.0)
EQUAL = grids.from_noise_ratios(PATH, np.arange(45, 1, -1.0))
LAST = EQUAL.steps - 1
BOUNDS = {
    "ghvb": (
        solver.ghvb,
        (
            lambda b: -2 * (2 - b) / b,
            lambda b: b - 2,
            lambda b: -6 * (2 - b) / (12 - b),
            lambda b: -3 * (2 - b) / (11 - b),
        ),
    ),
    "hb": (
        solver.heavy_ball,
        tuple(lambda b, ab=ab: -ab * (2 - b) / b for ab in (2, 1, 6 / 11, 0.3)),
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_real_interval(name):
    build, bounds = BOUNDS[name]
    for order, bound in enumerate(bounds, 1):
        for beta in (0.5, 0.8, 0.9, 1.0):
            found = solver.real_interval(build(PATH, EQUAL, number=order - 1 + beta, variable=False), LAST)
            assert abs(found - bound(beta)) < 1e-3, (order, beta)


def test_real_steps_have_the_same_interval_once_the_start_is_forgotten():
    for number, bound in ((0.8, -3.0), (2.5, -6 * 1.5 / 11.5), (3.8, -3 * 1.2 / 10.2)):
        assert abs(solver.real_interval(solver.ghvb(PATH, EQUAL, number=number), LAST) - bound) < 2e-3


def test_the_number_for_a_stiffness_is_the_inverse_of_the_interval():
    for number in (0.3, 0.9, 1.0, 1.6, 2.0, 2.4, 3.0, 3.7, 4.0):
        bound = solver.real_interval(solver.ghvb(PATH, EQUAL, number=number, variable=False), LAST)
        assert number - 0.011 < solver.number_for(-bound) <= number
    assert solver.number_for(0.0) == 4.0


@pytest.mark.parametrize("number", [1.5, 2.5, 3.8])
def test_locus_is_the_published_curve(number):
    """z = (1 - E)(1 - (1 - b) E) / sum_j g_j E^(j + 1), E = e^(-i angle); of HB the sum is b times that of Adams."""
    order, beta = int(number) + 1, number - int(number)
    turn = np.exp(-1j * np.linspace(0, 2 * np.pi, 41)[1:-1])
    powers = turn[:, None] ** np.arange(1, order + 1)
    for build, weights in (
        (solver.ghvb, beta * generalized_weights(order, beta)),
        (solver.heavy_ball, beta * generalized_weights(order, 1.0)),
    ):
        curve = solver.locus(build(PATH, EQUAL, number=number, variable=False), LAST, n=41)
        np.testing.assert_allclose(curve[1:-1], (1 - turn) * (1 - (1 - beta) * turn) / (powers @ weights), rtol=1e-9)
        assert curve[0] == curve[-1] == 0


def test_a_step_has_the_same_region_on_every_path():
    """Steps of equal length in kappa on a path that scales x: the matrices are similar."""
    path, z = VP(), np.array([-0.3, -0.2 + 0.4j, 0.1])
    grid = grids.from_noise_ratios(path, np.linspace(3, 1, 21))
    for build in (solver.ghvb, solver.heavy_ball, solver.nesterov):
        here, there = (
            solver.stability_radius(build(p, g, number=2.5, variable=False), 19, z)
            for p, g in ((path, grid), (PATH, EQUAL))
        )
        np.testing.assert_allclose(here, there, rtol=1e-9)


def test_heun_and_euler_have_their_taylor_polynomials():
    z = np.array([-1.5, -0.5 + 1j, 0.3])
    grid = grids.uniform_time(Linear(), 5, start=0.1, stop=0.9)
    heun = solver.heun(Linear(), grid, extrapolates="velocity")
    np.testing.assert_allclose(solver.stability_radius(heun, 2, z), np.abs(1 + z + z**2 / 2))
    euler = solver.euler(PATH, EQUAL, extrapolates="noise")
    np.testing.assert_allclose(solver.stability_radius(euler, 2, z), np.abs(1 + z))
    assert abs(solver.real_interval(euler, 2) + 2) < 1e-6
    with pytest.raises(InputError, match="evaluates more than once in step 2"):
        solver.locus(heun, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solver.stability_radius(solver.dpmpp(PATH, EQUAL), 3, -1.0), "extrapolates data"),
        (lambda: solver.real_interval(solver.euler_maruyama(VP(), grids.log_snr(VP(), 5)), 1), "adds noise"),
        (lambda: solver.locus(solver.ghvb(PATH, EQUAL), 44), r"step must be in 0 .. 42, got 44"),
        (
            lambda: solver.real_interval(
                solver.ghvb(Linear(), grids.polynomial(Linear(), 3), extrapolates="velocity"), -1
            ),
            "got -1",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
