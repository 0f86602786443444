"""The study runs, and its network sees no length of the weights that it calls hidden."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import studies
from kinema.studies import adamp


def test_smoke():
    evidence = studies.run("adamp", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["length of SGDP 0.9 over gradient descent, worst rate"] < 1.35
    assert values["gap, SGDP 0.9, worst rate"] < evidence.metrics[0].baseline[0]
    assert [figure.name for figure in evidence.figures] == ["quotient", "digits"]
    assert len(evidence.tables) == 3


def test_rows_of_hidden_weights_are_scale_invariant():
    params = adamp.perceptron((64, 8, 8, 10), jr.key(0))
    x = jr.normal(jr.key(1), (32, 64))
    scaled = params | {"weight1": params["weight1"] * jnp.arange(1.0, 9.0)[:, None]}
    with jax.disable_jit():
        same, other = (adamp.logits_of(one, x)[0] for one in (params, scaled))
        np.testing.assert_allclose(other, same, atol=1e-3)
        last = params | {"weight2": 2 * params["weight2"]}
        assert np.abs(adamp.logits_of(last, x)[0] - same).max() > 0.1
        assert float(adamp.angle(params, scaled)) < 0.1
        statistics = adamp.logits_of(params, x)[1]
        np.testing.assert_allclose(adamp.logits_of(params, x[:4], statistics)[0], same[:4], rtol=1e-5, atol=1e-6)
