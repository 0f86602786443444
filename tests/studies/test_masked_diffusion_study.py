"""The study runs, and its yardsticks are right where the answer is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from conftest import assert_within_error

from kinema import studies
from kinema.generate.discrete.masked_exact import table_model
from kinema.generate.discrete.masking import MaskedModel
from kinema.generate.discrete.truncation import entropy, largest_gumbel, one_stage_law
from kinema.studies import masked_diffusion_digits as digits
from kinema.studies import masked_diffusion_toys as toys


def test_smoke():
    evidence = studies.run("masked-diffusion-fhs", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [figure.name for figure in evidence.figures] == ["steps", "temperature", "reveal", "digits"]
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert 0.5 < values["the same over the least that so many draws allow"] < 1.5
    assert values["bound of the exact network less the entropy"] < 1e-5
    assert values["time of categorical draws, published over first hitting"] > 0


def test_one_stage_draws_in_half_precision_are_colder():
    law, n = toys.ZIPF[:50] / toys.ZIPF[:50].sum(), 20_000
    x = toys.one_stage(jnp.log(jnp.asarray(law)).astype(jnp.float16), jr.key(0), n, 16)
    assert x.max() < 50
    drawn = np.bincount(x, minlength=50) / n
    wanted = one_stage_law(law, 16, largest_gumbel(10))
    assert np.abs(drawn - wanted).sum() / 2 < 0.06
    assert entropy(drawn) < entropy(law) - 0.15


def test_bound_of_a_known_law():
    joint = np.random.default_rng(0).dirichlet(np.ones(81)).reshape((3,) * 4)
    np.testing.assert_allclose(toys.bound(table_model(joint), joint.ravel()), entropy(joint.ravel()), rtol=1e-5)


def test_digits_have_four_levels():
    train, test = digits.grey_digits()
    assert (len(train), len(test)) == (1500, 297)
    assert set(np.unique(train)) == {0, 1, 2, 3}
    assert digits.distance(train[:297], test) < 0.01 < digits.distance(3 - test, test)


def test_a_timed_network_is_told_the_time_of_its_count():
    """With d of 64 pixels known, t is the next of 65 uniform times, of mean (d + 1) / 66: seen in E[t d / 64]."""

    class Product(eqx.Module):
        t: jax.Array

        def __call__(self, x):
            surprise = self.t * (x < 4).mean()
            other = jnp.log(-jnp.expm1(-surprise) / 3)
            return jnp.tile(jnp.append(-surprise, jnp.full(3, other)), (64, 1))

    model = MaskedModel(Product(jnp.zeros(())), 64, 4)
    loss = digits.judged(model, digits.rows(np.zeros((640, 64), int), True), jr.key(0))
    d = np.arange(64)
    assert_within_error(loss / 64, np.mean(d * (d + 1)) / 64 / 66, standard_error=0.061 / 640**0.5)
    assert float(digits.judged(model, digits.rows(np.zeros((640, 64), int), False), jr.key(0))) == 0
