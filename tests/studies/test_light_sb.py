"""The study runs, and what it compares with is what it is called."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from conftest import assert_within_error

from kinema import studies
from kinema.generate.bridges import LightBridge, conditional_bures_uvp
from kinema.studies import light_sb_branching, light_sb_pairs


def test_smoke():
    evidence = studies.run("light-sb", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert np.isfinite(list(values.values())).all()
    assert [one.name for one in evidence.figures] == ["uvp", "branching"]


def test_independent_plan_of_one_gaussian():
    """y = r + S x + noise with x ~ N(0, 1): the means differ by S x, the variances by S^2."""
    truth = LightBridge([[2.0]], 3.0, eps=1.0)
    x0, x1 = light_sb_pairs.ends(truth, 40_000, jr.key(0))
    found = light_sb_pairs.independent_uvp(truth, x0, x1)
    exact = 200 * (9 + (12**0.5 - 3**0.5) ** 2) / 12
    assert_within_error(found, exact, standard_error=exact * 2 * (2 / 40_000) ** 0.5)


def test_pinned_paths_have_the_variance_of_a_bridge():
    start, end = jnp.zeros((20_000, 2)), jnp.full((20_000, 2), 2.0)
    paths = light_sb_branching.pinned(jnp.linspace(0, 1, 5), start, end, jr.key(0))
    np.testing.assert_allclose(paths[:, -1], end, atol=1e-5)
    truth = light_sb_branching.NOISE / 4
    assert_within_error(paths[:, 2].var(0), truth, standard_error=truth * (2 / 20_000) ** 0.5)
    assert_within_error(paths[:, 2].mean(0), 1.0, standard_error=(truth / 20_000) ** 0.5)


def test_cells_stay_with_their_kind_and_split_in_two():
    cells = np.asarray(light_sb_branching.grow(300, jr.key(0)))
    kind, last = np.sign(cells[:, 0, 1]), cells[:, 2, 1]
    assert (np.sign(last) == kind).mean() > 0.99
    upper = last[kind > 0] - 3
    assert (np.abs(upper) > 0.5).mean() > 0.9 and 0.35 < (upper > 0).mean() < 0.65


def test_the_published_recipe_learns():
    truth = LightBridge([[3.0, 0.0], [-3.0, 0.0]], eps=1.0)
    x0, x1 = light_sb_pairs.ends(truth, 2000, jr.key(0))
    begin = LightBridge(x1[: light_sb_pairs.COMPONENTS], eps=1.0)
    found = light_sb_pairs.published(begin, x0, x1, 1500, jnp.asarray(1e-2), jr.key(1))
    before, after = (float(conditional_bures_uvp(one, truth, x0[:500], x1)) for one in (begin, found))
    assert after < 2 and after < before / 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
