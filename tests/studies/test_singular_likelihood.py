"""The study runs, and its yardstick is right where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unoptimised import unoptimised

from kinema import studies
from kinema.studies import singular_likelihood as study


def test_smoke():
    pytest.importorskip("sklearn")
    with unoptimised():
        evidence = studies.run("singular-likelihood", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [picture.name for picture in evidence.figures] == ["noise", "fits-1", "fits-2"]
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)


def test_distance_of_a_shift_is_its_length_and_of_a_reordering_none():
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(study.wasserstein(x[::-1], x + np.array([0.3, 0.4])), 0.5)
    assert study.wasserstein(x[::-1], x) == 0


def test_truth_lies_on_its_curve_and_torus():
    curve, torus = (np.asarray(jax.vmap(study.truth)(study.evenly(dim))) for dim in (1, 2))
    assert curve.shape == (1024, 2) and torus.shape == (1024, 3)
    angle = np.arctan2(*curve.T[::-1])
    np.testing.assert_allclose(np.hypot(*curve.T), 1 + 0.35 * np.cos(3 * angle), atol=1e-5)
    np.testing.assert_allclose((np.hypot(*torus.T[:2]) - 1) ** 2 + torus[:, 2] ** 2, 0.16, atol=1e-5)
    # more of the mass lies where the angle moves slowly
    assert (curve[:, 0] < 0).mean() > 0.55
    assert jnp.abs(study.evenly(2).mean(0) - 0.5).max() < 1e-6
