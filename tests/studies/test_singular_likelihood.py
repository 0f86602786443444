"""The study runs, and its yardstick is right where the answer is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import studies
from kinema.studies import singular_likelihood as study


def test_smoke():
    pytest.importorskip("sklearn")
    evidence = studies.run("singular-likelihood", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [picture.name for picture in evidence.figures] == ["noise", "fits"]
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)


def test_distance_of_a_shift_is_its_length_and_of_a_reordering_none():
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(study.wasserstein(x[::-1], x + np.array([0.3, 0.4])), 0.5)
    assert study.wasserstein(x[::-1], x) == 0


def test_truth_lies_on_its_curve_and_sheet():
    curve, sheet = (np.asarray(jax.vmap(study.truth)(study.evenly(1024, dim))) for dim in (1, 2))
    assert curve.shape == (1024, 2) and sheet.shape == (1024, 3)
    angle = np.arctan2(*curve.T[::-1])
    np.testing.assert_allclose(np.hypot(*curve.T), 1 + 0.35 * np.cos(3 * angle), atol=1e-5)
    np.testing.assert_allclose(sheet[:, 2], 0.6 * np.cos(np.pi * sheet[:, 0]) * np.cos(np.pi * sheet[:, 1]), atol=1e-6)
    # more of the mass lies where the angle, or the place on the sheet, moves slowly
    assert (curve[:, 0] < 0).mean() > 0.55
    assert (np.abs(sheet[:, 0]) < 0.5).mean() > 0.55
    assert jnp.abs(study.evenly(1024, 2).mean(0) - 0.5).max() < 1e-6


def test_levels_of_a_joint_fit_do_not_touch_each_other():
    data, keys = jax.vmap(study.truth)(jr.uniform(jr.key(0), (50, 1))), (jr.key(1), jr.key(2))
    noises, starts = jnp.array([0.0, 0.3]), jnp.array([0.02, 0.5])
    one, other = (
        study.fit_levels(data, noises[i], starts[i], *keys, 8) for i in (jnp.array([0, 1]), jnp.array([1, 0]))
    )
    leaves = zip(jax.tree.leaves(one.generator), jax.tree.leaves(other.generator))
    assert all(np.allclose(a, b[::-1], atol=1e-5) for a, b in leaves if eqx.is_array(a))
    assert one.log_std[0] < one.log_std[1]
