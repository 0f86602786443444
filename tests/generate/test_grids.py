import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.path import EDM, GAUSSIAN, VE, VP, Linear
from kinema.generate.path.path import in_float64
from kinema.generate.solver import grids

PATH_LIST = {name: make() for name, make in GAUSSIAN.items()}
TABLE = np.cumprod(1 - np.linspace(1e-4, 0.02, 100))


def bare(**change):
    columns = {"times": [0.0, 1.0], "a": [0.5, 1.0], "b": [0.0, 0.0], "s": [1.0, 0.0]} | change
    return grids.Grid(**{name: np.array(values) for name, values in columns.items()})


@pytest.mark.parametrize("name", PATH_LIST)
@pytest.mark.parametrize("kind", grids.GRIDS)
def test_every_grid_runs_from_source_to_clean_data(name, kind):
    path = PATH_LIST[name]
    grid = grids.GRIDS[kind](path, 7)
    assert grid.steps == 7 and grid.s[-1] == 0 and grid.times[-1] == 1
    assert (np.diff(grid.log_snr) > 0).all() and (np.diff(grid.noise_ratio[np.isfinite(grid.noise_ratio)]) < 0).all()
    a, b, s = in_float64(path.coefficients, grid.times[:-1])
    assert np.allclose(grid.a[:-1], a) and np.allclose(grid.b[:-1], b) and np.allclose(grid.s[:-1], s)
    assert grid.a[-1] == in_float64(path.coefficients, 1.0)[0]


def test_karras_spacing_is_the_published_one():
    grid = grids.karras(VE(0.002, 80.0), 18)
    i = np.arange(18)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert np.allclose(grid.noise_ratio, [*published, 0.0], rtol=1e-10)


def test_uniform_time_on_the_edm_path_is_the_karras_grid():
    path = EDM()
    assert np.allclose(grids.uniform_time(path, 10).s, grids.karras(path, 10).s, rtol=1e-9, atol=0)


def test_log_snr_spacing_is_even_between_its_ends():
    grid = grids.log_snr(VP(), 8, low=-4.0, high=4.0, clean=False)
    assert np.allclose(grid.log_snr, np.linspace(-4, 4, 9), atol=1e-9) and not grid.clean
    assert grids.log_snr(VP(), 8, low=-4.0, high=4.0).steps == 8
    assert grids.log_snr(VP(), 1).steps == 1


def test_polynomial_spacing_shortens_the_last_steps():
    grid = grids.polynomial(Linear(), 4, rho=2.0)
    assert np.allclose(1 - grid.times, [1, 9 / 16, 1 / 4, 1 / 16, 0])
    assert np.allclose(grids.polynomial(Linear(), 4, rho=1.0).times, grids.uniform_time(Linear(), 4).times)
    assert np.allclose(grids.uniform_time(VP(), 4, start=0.2, stop=0.8).times, [0.2, 0.35, 0.5, 0.65, 0.8])


def test_noise_ratios_are_met():
    ratios = [5.0, 2.0, 0.4, 0.0]
    grid = grids.from_noise_ratios(VP(), ratios)
    assert np.allclose(grid.noise_ratio, ratios, atol=1e-12) and grid.clean
    assert np.allclose(grid.a[:-1] ** 2 + grid.s[:-1] ** 2, 1)


def test_points_between_grid_times_come_from_the_path():
    t, a, _, s = grids.karras(VP(), 5).at_noise_ratio(0.7)
    assert np.isclose(s / a, 0.7) and np.isclose(in_float64(VP().coefficients, t)[0], a)


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({"steps": 4}, [99, 74, 50, 25]),
        ({"steps": 4, "spacing": "leading", "offset": 1}, [81, 61, 41, 21]),
        ({"steps": 4, "spacing": "trailing"}, [99, 74, 49, 24]),
        ({"timesteps": [90, 30, 3]}, [90, 30, 3]),
    ],
)
def test_tables_are_met_at_their_indices(options, indices):
    grid = grids.discrete(TABLE, **options)
    assert np.allclose(grid.times[:-1], 1 - (np.array(indices) + 1) / 100)
    assert np.allclose(grid.a[:-1] ** 2, TABLE[indices], rtol=1e-12)
    assert np.allclose(grid.s[:-1] ** 2, 1 - TABLE[indices], rtol=1e-12)
    assert (grid.a[-1], grid.s[-1], grid.times[-1]) == (1, 0, 1)


def test_tables_end_on_their_first_entry_if_asked():
    grid = grids.discrete(TABLE, 4, clean=False)
    assert np.isclose(grid.a[-1] ** 2, TABLE[0]) and grid.steps == 4


def test_karras_spacing_goes_between_table_indices():
    grid = grids.discrete(TABLE, 6, spacing="karras")
    levels = grid.noise_ratio[:-1] ** (1 / 7)
    # the index is interpolated in log-SNR, so levels are exact at both ends and close within
    assert np.allclose(levels, np.linspace(levels[0], levels[-1], 6), rtol=1e-9)
    assert np.isclose(grid.noise_ratio[0] ** 2, (1 - TABLE[-1]) / TABLE[-1])
    t, a, _, s = grid.at_noise_ratio(1.0)
    assert np.isclose(a, s) and grid.times[0] < t < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: grids.from_times(VP(), [0.1, 0.5, 0.2]),
            r"times must increase, got times\[2\]=0.2 after times\[1\]=0.5",
        ),
        (lambda: grids.from_times(VP(), [0.1, 0.1]), "must increase"),
        (lambda: grids.from_times(VP(), [0.1, np.nan]), r"finite, got times\[1\]=nan"),
        (lambda: grids.from_times(VP(), [-0.1, 0.5]), r"in \[0, 1\], got -0.1"),
        (lambda: grids.from_times(VP(), [0.5]), "at least 2"),
        (lambda: grids.from_times(VP(), [0.5, 1.0], clean=True), "no noise left"),
        (lambda: grids.uniform_time(VP(), 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: grids.karras(VP(), 5, rho=0.0), "rho must be positive"),
        (lambda: grids.polynomial(VP(), 5, rho=-1.0), "rho must be positive"),
        (lambda: grids.log_snr(VP(), 5, low=2.0, high=1.0), "low must be below high"),
        (lambda: grids.log_snr(VP(), 5, low=-9.0), "outside the path"),
        (lambda: grids.from_noise_ratios(VP(), [1.0, 2.0]), "must increase"),
        (lambda: grids.from_noise_ratios(VP(), [1.0, 0.5, -1.0]), "positive but for a last 0"),
        (lambda: grids.from_noise_ratios(VE(), [500.0, 0.5]), "outside the path"),
        (lambda: grids.karras(VE(), 5).at_noise_ratio(1e-12), "outside the path"),
        (lambda: grids.discrete(TABLE, 5, timesteps=[3, 2]), "give either steps or timesteps"),
        (lambda: grids.discrete(TABLE), "give either"),
        (lambda: grids.discrete(TABLE, timesteps=[3, 5]), "timesteps must fall"),
        (lambda: grids.discrete(TABLE, timesteps=[100, 5]), "in 0 .. 99"),
        (lambda: grids.discrete(TABLE, 5, spacing="even"), "spacing must be"),
        (lambda: grids.discrete(TABLE[::-1], 5), "fall inside"),
        (lambda: bare(s=[1.0]), "s must be a vector as long as times"),
        (lambda: bare(a=[0.5, np.inf]), r"a\[1\]=inf"),
        (
            lambda: bare().at_noise_ratio(1.0),
            "from a path or a table",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
