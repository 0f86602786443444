import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.fields import FIELDS, PREDICTS, Moments, convert
from kinema.generate.generator import moments_in_float64
from kinema.generate.path import GAUSSIAN

PATH_LIST = {name: make() for name, make in GAUSSIAN.items()}
TIMES = np.array([0.03, 0.2, 0.5, 0.8, 0.97])


def fields_of(moments, data, noise):
    """All fields of y = a data + s noise, from their definitions."""
    ds = moments.s_ds / moments.s
    return {
        "data": data,
        "noise": noise,
        "velocity": moments.da * data + ds * noise,
        "score": -noise / moments.s,
    }


@pytest.mark.parametrize("name", PATH_LIST)
def test_every_field_follows_from_every_other(name):
    moments = moments_in_float64(PATH_LIST[name], TIMES)
    data, noise = np.linspace(-1.2, 0.9, 5), np.linspace(1.4, -0.6, 5)
    y, truth = moments.a * data + moments.s * noise, fields_of(moments, data, noise)
    for known in FIELDS:
        for wanted in FIELDS:
            to = convert(known, wanted, moments)
            assert np.allclose(to.P * y + to.Q * truth[known], truth[wanted], rtol=1e-9, atol=1e-9), (known, wanted)


@pytest.mark.parametrize("name", PATH_LIST)
def test_conversions_round_trip(name):
    moments = moments_in_float64(PATH_LIST[name], TIMES)
    y, field = np.linspace(-2, 2, 5), np.linspace(1, -0.5, 5)
    for known in FIELDS:
        for wanted in FIELDS:
            there, back = convert(known, wanted, moments), convert(wanted, known, moments)
            again = back.P * y + back.Q * (there.P * y + there.Q * field)
            assert np.allclose(again, field, rtol=1e-9, atol=1e-9), (known, wanted)


@pytest.mark.parametrize("name", PATH_LIST)
def test_residual_is_the_preconditioning_of_edm(name):
    sigma_data = 0.7
    moments = moments_in_float64(PATH_LIST[name], TIMES)
    y, residual = np.linspace(-2, 2, 5), np.linspace(1, -0.5, 5)
    sigma, scaled = moments.s / moments.a, y / moments.a  # Karras et al. write x = x1 + sigma z
    skip, out = sigma_data**2 / (sigma**2 + sigma_data**2), sigma * sigma_data / np.hypot(sigma, sigma_data)
    data = skip * scaled + out * residual
    truth = fields_of(moments, data, (y - moments.a * data) / moments.s)
    for wanted in FIELDS:
        to = convert("residual", wanted, moments, sigma_data)
        assert np.allclose(to.P * y + to.Q * residual, truth[wanted], rtol=1e-9, atol=1e-9), wanted


@pytest.mark.parametrize("name", PATH_LIST)
def test_single_precision_loses_at_most_three_digits_at_the_ends(name):
    path = PATH_LIST[name]
    times = np.float32([path.t_min, path.t_min + 1e-4, 1e-3, path.t_max - 1e-4, path.t_max])
    low = jax.vmap(lambda t: Moments.at(path, t))(jnp.asarray(times))
    high = moments_in_float64(path, times.astype(np.float64))
    for known in PREDICTS:
        for wanted in FIELDS:
            single, double = convert(known, wanted, low), convert(known, wanted, high)
            # P may be a difference of two larger numbers; what it multiplies is of the size of y
            scale = np.abs(double.Q) * (np.abs(high.a) + np.abs(high.s)) + np.abs(double.P)
            for ours, truth in ((single.P, double.P), (single.Q, double.Q)):
                assert np.isfinite(ours).all(), (known, wanted)
                assert np.allclose(ours, truth, rtol=1e-4, atol=0) or (np.abs(ours - truth) <= 1e-4 * scale).all()


def test_a_field_is_itself():
    moments = moments_in_float64(PATH_LIST["vp"], TIMES)
    for name in FIELDS:
        assert (convert(name, name, moments).P == 0).all() and (convert(name, name, moments).Q == 1).all()


def test_unknown_names_are_refused():
    moments = moments_in_float64(PATH_LIST["vp"], TIMES)
    with pytest.raises(InputError, match="did you mean 'noise'"):
        convert("nois", "data", moments)
    with pytest.raises(InputError, match="unknown field 'residual'"):
        convert("data", "residual", moments)
