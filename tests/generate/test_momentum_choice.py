"""Stiffness against Gaussian data, where the noise prediction is linear, and the momentum that follows."""

import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.momentum_choice import choose_momentum, stiffness
from kinema.generate.path import VP, Bridge, Linear
from kinema.generate.solver import ghvb, grids, number_for, real_interval

PATH = VP()
GRID = grids.log_snr(PATH, 4, low=-2.0, high=2.5, clean=False)
KAPPA, STEPS = GRID.noise_ratio[:-1], -np.diff(GRID.noise_ratio)
VARIANCES = np.array([0.04, 4.0])


def test_gaussian_data_have_the_stiffness_of_their_variances(key):
    """e = kappa X / (c + kappa^2) in each dimension: l is the largest of kappa / (c + kappa^2)."""
    gen = MixturePosterior(PATH, np.zeros((2, 2)), np.stack([VARIANCES, VARIANCES]))
    truth = (KAPPA[:, None] / (VARIANCES + KAPPA[:, None] ** 2)).max(1) * STEPS
    np.testing.assert_allclose(stiffness(gen, GRID, key=key, shape=(2,)), truth, rtol=2e-2)
    number = choose_momentum(gen, GRID, key=key, shape=(2,))
    np.testing.assert_allclose(number, number_for(1.1 * truth.max()), rtol=5e-2)
    equal = grids.from_noise_ratios(PATH, np.linspace(2, 0.5, 41))
    assert -real_interval(ghvb(PATH, equal, number=number, variable=False), 39) > truth.max()


def test_where_samples_part_nothing_is_stiff(key):
    """Between two points of data l is as low as (1 - 1 / kappa^2) / kappa; 1 / kappa is all that pulls together."""
    gen = MixturePosterior(PATH, np.array([[-1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2)))
    np.testing.assert_allclose(stiffness(gen, GRID, key=key, shape=(2,)), STEPS / KAPPA, rtol=2e-2)


def test_bad_input_is_refused(key):
    gen = MixturePosterior(PATH, np.zeros((1, 3)), 1.0)
    with pytest.raises(InputError, match="n=0"):
        stiffness(gen, GRID, 0, key=key, shape=(3,))
    with pytest.raises(InputError, match="another flow"):
        stiffness(MixturePosterior(Bridge(), np.zeros((1, 3)), 1.0), GRID, key=key, shape=(3,))
    with pytest.raises(InputError, match="holds no data"):
        linear = MixturePosterior(Linear(), np.zeros((1, 3)), 1.0)
        choose_momentum(linear, grids.uniform_time(Linear(), 4), key=key, shape=(3,))
