"""One of several paths is that path, in compiled code too, and one program serves all of them."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import VE, VP, Bridge, SubVP
from kinema.generate.fields import Moments
from kinema.studies.one_of import OneOf

PATHS = (VP(), SubVP(), VE())


def test_it_is_the_path_that_was_chosen_by_one_program():
    traced = []

    @eqx.filter_jit
    def seen(path, t):
        traced.append(path)
        level = path.log_snr(t)
        ends = path.t_min + jnp.zeros_like(t), path.t_max + jnp.zeros_like(t)
        return *Moments.at(path, t), level, path.time_of_log_snr(level), path.signal(t), *ends

    t = jnp.array([0.1, 0.5, 0.9])
    for which, path in enumerate(PATHS):
        level = path.log_snr(t)
        ends = jnp.full(3, path.t_min), jnp.full(3, path.t_max)
        truth = *Moments.at(path, t), level, path.time_of_log_snr(level), path.signal(t), *ends
        for found, wanted in zip(seen(OneOf(PATHS, which), t), truth, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-5)
    assert len(traced) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"which must be in 0 \.\. 2, got 3"):
        OneOf(PATHS, 3)
    with pytest.raises(InputError, match="one origin"):
        OneOf((VP(), Bridge()), 0)
