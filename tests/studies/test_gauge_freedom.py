"""The study runs, and its fields are what they are called."""

import jax
import jax.numpy as jnp
import numpy as np

from kinema import studies
from kinema.studies import gauge_freedom


def test_smoke():
    evidence = studies.run("gauge-freedom", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert np.isfinite([metric.measured.mean for metric in evidence.metrics]).all()
    assert evidence.metrics[3].measured.mean < 0.05


def test_rotation_and_shear_are_gauges(x64):
    """div r + r . s = 0 at a point off the sphere."""
    gauge = gauge_freedom.Gauge(jnp.asarray(3.0), jnp.asarray(0.3))
    t, x = jnp.asarray(0.5), jnp.array([0.7, -0.4, 0.5, 0.1, -0.2])

    @jax.jit
    def both(x):
        r = gauge(t, x)
        return jnp.trace(jax.jacfwd(lambda y: gauge(t, y))(x)), r @ gauge_freedom.EXACT.raw(t, x), r @ r

    divergence, along, size = both(x)
    assert abs(divergence + along) < 1e-8 < size
