"""Truth: the algebra of guidance, and laws whose guided score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema import models
from kinema.errors import InputError
from kinema.generate import VP, Generator, Linear, sample
from kinema.generate.generator import AbstractGenerator
from kinema.generate.guidance import Guided
from kinema.generate.solver import euler, grids

MEANS = np.array([[2.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])  # of label 0, 1 and the null label 2


class Labelled(AbstractGenerator):
    """Normal data N(MEANS[label], 1), exactly."""

    path: object
    predicts: str = "data"
    sigma_data: float = 1.0
    calls = property(lambda self: 1)

    def raw(self, t, x, cond=None, x0=None):
        a, _, s = self.path.coefficients(t)
        mean = jnp.asarray(MEANS, x.dtype)[cond]
        return mean + a / (a**2 + s**2) * (x - a * mean)


NULL, LABEL = jnp.array(2), jnp.array(0)


def test_every_field_is_extrapolated():
    plain = Labelled(VP())
    x, t = jnp.array([0.3, -0.7]), 0.4
    with_label, without = plain(t, x, LABEL), plain(t, x, NULL)
    for scale in (0.0, 1.0, 2.5, -1.0):
        guided = Guided(plain, NULL, scale)(t, x, LABEL)
        for field in ("data", "noise", "velocity", "score"):
            low, high = getattr(without, field), getattr(with_label, field)
            np.testing.assert_allclose(getattr(guided, field), low + scale * (high - low), rtol=2e-5, atol=2e-5)


def test_guided_normal_law_is_normal():
    """Scores of N(m, 1) and N(0, 1) at scale w make that of N(w m, 1): samples move to w m. On Linear a^2 + s^2 < 1."""
    gen = Guided(Labelled(VP()), NULL, 3.0)
    wide = Labelled(VP())
    t, x = 0.7, jnp.array([0.5, 0.2])
    a = VP().coefficients(t)[0]
    np.testing.assert_allclose(gen(t, x, LABEL).score, -(x - 3 * a * MEANS[0]), atol=1e-5)
    plan = euler(gen.path, grids.log_snr(gen.path, 60, high=6.0))
    key = jax.random.key(0)
    found = sample(gen, plan, 8, key=key, shape=(2,), cond=jnp.zeros(8, int)).x
    plain = sample(wide, plan, 8, key=key, shape=(2,), cond=jnp.full(8, 2)).x
    np.testing.assert_allclose(found - plain, np.tile(3 * MEANS[0], (8, 1)), atol=0.05)


def test_calls_and_what_is_inside():
    plain = Labelled(Linear())
    once = Guided(plain, NULL)
    assert (plain.calls, once.calls, Guided(once, NULL).calls) == (1, 2, 4)
    assert once.components == (plain,)
    assert (once.path, once.predicts, once.sigma_data) == (plain.path, "data", 1.0)
    assert once.fields == plain.fields


def test_network_with_its_null_label():
    net = models.make("mlp", shape=(2,), classes=2, width=8, depth=1, key=jax.random.key(0))
    net = jax.tree.map(lambda w: w + 0.1 if hasattr(w, "shape") else w, net)
    gen = Generator(Linear(), net, predicts="velocity")
    x, t = jnp.array([0.3, -0.7]), 0.4
    null = models.null_condition(net)
    same = Guided(gen, null, 1.0)(t, x, jnp.array(1)).data
    np.testing.assert_allclose(same, gen(t, x, jnp.array(1)).data, rtol=1e-5)
    none = Guided(gen, null, 0.0)(t, x, jnp.array(1)).data
    np.testing.assert_allclose(none, gen(t, x, None).data, rtol=1e-5)


def test_null_is_broadcast_and_takes_the_dtype_of_the_condition():
    class Vector(Labelled):
        def raw(self, t, x, cond=None, x0=None):
            return x * 0 + cond.sum()

    guided = Guided(Vector(Linear()), 0, 2.0)
    np.testing.assert_allclose(guided.raw(0.5, jnp.zeros(2), jnp.array([1.0, 2.0])), [6, 6])


def test_refuses():
    with pytest.raises(InputError, match="finite"):
        Guided(Labelled(Linear()), NULL, np.nan)
    with pytest.raises(InputError, match="cond is missing"):
        Guided(Labelled(Linear()), NULL)(0.5, jnp.zeros(2))
