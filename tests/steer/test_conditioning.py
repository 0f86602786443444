"""Truth: conditional laws of correlated normals and of mixtures, in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import VE, VP, Linear, SubVP
from kinema.generate.codec import Codec
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.solver import ancestral, dpmpp, grids, predictor_corrector
from kinema.steer import steer
from kinema.steer.conditioning import condition_on_mask, condition_on_projection, guide_by_classifier
from kinema.steer.path_weighted import PathWeighted

RHO, KNOWN = 0.9, 1.5
FIRST = condition_on_mask(np.array([True, False]), np.array([KNOWN, np.nan]))


def pair(path) -> MixturePosterior:
    """Two unit normals of correlation RHO."""
    return MixturePosterior(path, np.zeros((1, 2)), np.array([[[1, RHO], [RHO, 1]]]))


def walk(path, steps: int):
    return ancestral(path, grids.log_snr(path, steps, high=4.5))


def weighted_moments(x, log_weight):
    weight = jax.nn.softmax(log_weight)
    mean = weight @ x
    return mean, weight @ (x - mean) ** 2


def test_replacement_is_biased_and_weights_are_not(key):
    """E[second | first] = RHO * first, variance 1 - RHO^2; and the evidence of the first is its normal density."""
    gen, n = pair(VP()), 2048
    plan, truth, variance = walk(gen.path, 150), RHO * KNOWN, 1 - RHO**2
    plain = steer(gen, plan, FIRST, n, key=key, shape=(2,))
    np.testing.assert_array_equal(plain.x[:, 0], KNOWN)
    assert float(plain.x[:, 1].mean()) < truth - 0.2
    weighted = steer(gen, plan, PathWeighted(FIRST), n, key=key, shape=(2,))
    mean, spread = weighted_moments(weighted.x[:, 1], weighted.log_weight)
    size = float(weighted.ess.min())
    # 0.01: what a step of 150 leaves to the sampler's own law
    assert_within_error(mean, truth, standard_error=(variance / size) ** 0.5 + 0.01 / 4)
    assert_within_error(spread, variance, standard_error=variance * ((2 / size) ** 0.5 + 0.05 / 4))
    evidence = jax.nn.logsumexp(weighted.log_weight) - np.log(n)
    assert_within_error(evidence, jax.scipy.stats.norm.logpdf(KNOWN), standard_error=(1 / size) ** 0.5 + 0.1 / 4)


@pytest.mark.parametrize("path", [SubVP(), VE(), Linear()], ids=["sub-vp", "ve", "linear"])
def test_predictor_corrector_ends_clean_and_exact(path, key):
    """The unknown part keeps no noise, the known part is its value to the bit. Truth: data on a line, x2 = x1 + 1."""
    line = MixturePosterior(path, np.array([[0.0, 1.0]]), np.array([[[1.0, 1.0], [1.0, 1.0]]]))
    plan = predictor_corrector(path, walk(path, 40))
    x = steer(line, plan, FIRST, 64, key=key, shape=(2,)).x
    np.testing.assert_array_equal(x[:, 0], KNOWN)
    other = steer(line, plan, condition_on_mask(np.array([False, False]), np.zeros(2)), 64, key=key, shape=(2,)).x
    np.testing.assert_allclose(other[:, 1], other[:, 0] + 1, atol=1e-3)


def test_one_value_for_each_sample_and_any_plan(key):
    """A multistep ODE plan; sample i alone is sample i of many."""
    gen = pair(Linear())
    plan = dpmpp(gen.path, grids.log_snr(gen.path, 12), order=2)
    values = jnp.stack([jnp.array([-1.0, 0.5, 2.0]), jnp.zeros(3)], 1)
    mask = np.array([True, False])
    each = steer(gen, plan, condition_on_mask(mask, values), 3, key=key, shape=(2,)).x
    np.testing.assert_array_equal(each[:, 0], values[:, 0])
    alone = steer(gen, plan, condition_on_mask(mask, values[0]), 3, key=key, shape=(2,)).x
    np.testing.assert_allclose(alone[0], each[0], atol=1e-6)


def test_projection_on_the_last_axis_and_on_all(key):
    """Grey values of colours: the view is kept, and a mask is the projection on its coordinates."""
    gen = pair(Linear())
    plan = walk(gen.path, 20)
    mask = steer(gen, plan, FIRST, 8, key=key, shape=(2,)).x
    same = steer(gen, plan, condition_on_projection([[1.0, 0.0]], np.array([KNOWN])), 8, key=key, shape=(2,)).x
    np.testing.assert_allclose(same, mask, atol=1e-6)

    class Pictures(eqx.Module):
        def __call__(self, x, signal, cond=None):
            return jnp.tanh(x + x.mean())

    from kinema.generate import Generator

    pictures = Generator(Linear(), Pictures())
    grey, Q = jr.normal(key, (4, 4, 1)), np.full((1, 3), 3**-0.5)
    x = steer(pictures, plan, condition_on_projection(Q, grey), 2, key=key, shape=(4, 4, 3)).x
    np.testing.assert_allclose(x @ Q.T, np.broadcast_to(grey, (2, 4, 4, 1)), atol=1e-5)
    assert float(x.std(-1).mean()) > 0.1


def test_physical_units(key):
    """The same samples through a codec: 10 + 2 x."""
    gen, codec = pair(VP()), Codec(jnp.full(2, 10.0), jnp.full(2, 2.0))
    plan = walk(gen.path, 20)
    plain = steer(gen, plan, FIRST, 8, key=key, shape=(2,)).x
    physical = condition_on_mask(np.array([True, False]), np.array([10 + 2 * KNOWN, np.nan]))
    through = steer(gen, plan, physical, 8, key=key, shape=(2,), codec=codec).x
    np.testing.assert_allclose(through, 10 + 2 * plain, atol=1e-5)


MEANS, STDS = np.array([[1.0, 0.5], [-1.0, 0.0], [0.0, -1.5]]), np.array([0.3, 0.5, 0.2])


def mixture(path):
    """A mixture, its first component alone, and the exact classifier of that component."""
    whole, first = MixturePosterior(path, MEANS, STDS**2), MixturePosterior(path, MEANS[:1], STDS[:1] ** 2)

    def log_prob(t, x):
        return jnp.log(whole.weights[0]) + first.log_prob(t, x) - whole.log_prob(t, x)

    return whole, first, log_prob


@pytest.mark.parametrize("path", [VP(), Linear()], ids=["vp", "linear"])
def test_exact_classifier_gives_the_component(path, key):
    """grad log p(k | x) + score = score of component k: guided samples are those of the component, one by one."""
    whole, first, log_prob = mixture(path)
    plan = walk(path, 20)
    guided = steer(whole, plan, guide_by_classifier(log_prob), 16, key=key, shape=(2,))
    from kinema.generate import sample

    np.testing.assert_allclose(guided.x, sample(first, plan, 16, key=key, shape=(2,)).x, atol=2e-3)
    assert int(guided.ledger.gradients) == 16 * plan.nfe
    # In other units the gradient changes as it must.
    codec = Codec(jnp.array([1.0, -1.0]), jnp.array([2.0, 0.5]))
    physical = guide_by_classifier(lambda t, x: log_prob(t, codec.encode(x)))
    again = steer(whole, plan, physical, 16, key=key, shape=(2,), codec=codec)
    np.testing.assert_allclose(codec.encode(again.x), guided.x, atol=2e-3)


def test_weights_mend_a_poor_guide(key):
    """Half the guidance finds the wrong component often; weights put the likelihood to the power 1/2 right.

    Truth: p(x) p(k = 0 | x)^(1/2) has the mass of component 0 in proportion to the integral over it, by quadrature.
    """
    path, n = VP(), 2048
    whole, _, log_prob = mixture(path)
    guide = guide_by_classifier(log_prob, 0.5)
    run = steer(whole, walk(path, 100), PathWeighted(guide, resample_last=True), n, key=key, shape=(2,))
    grid = jnp.linspace(-4, 4, 401)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    end = path.t_max
    log_density = jax.vmap(lambda x: whole.log_prob(end, x) + 0.5 * log_prob(end, x))(points)
    truth = jax.nn.softmax(log_density) @ points
    size = float(run.ess.min())
    spread = jax.nn.softmax(log_density) @ (points - truth) ** 2
    assert_within_error(run.x.mean(0), truth, standard_error=(spread * 2 / size) ** 0.5 + 0.02 / 4)
    np.testing.assert_allclose(run.log_weight, run.log_weight[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: condition_on_mask(np.ones(2), np.zeros(2)), "true or false"),
        (lambda: condition_on_projection([[1.0, 1.0]], np.zeros(1)), r"\|Q Q\^T - I\| = 1"),
        (lambda: condition_on_projection([1.0, 0.0], np.zeros(1)), "matrix"),
        (lambda: guide_by_classifier(lambda t, x: 0.0, np.inf), "finite"),
        (lambda: PathWeighted(FIRST, threshold=2.0), "threshold"),
        (lambda: PathWeighted(FIRST, resampler="wheel"), "unknown resampler"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (condition_on_mask(np.array([True]), np.zeros(1)), "mask must have the shape"),
        (condition_on_mask(np.array([True, False]), np.zeros((7, 2))), "leading axis of 4"),
        (condition_on_mask(np.array([True, False]), np.zeros(3)), "value must have the shape"),
        (condition_on_projection(np.eye(3)[:1], np.zeros(1)), "Q has 3 columns"),
    ],
)
def test_refuses_other_shapes(controller, message, key):
    gen = pair(VP())
    with pytest.raises(InputError, match=message):
        steer(gen, walk(gen.path, 4), controller, 4, key=key, shape=(2,))


@pytest.mark.parametrize("plan", ["dpmpp", "unclean", "corrected"])
def test_weights_refuse_plans_without_kernels(plan, key):
    path = VP()
    plans = {
        "dpmpp": lambda: dpmpp(path, grids.log_snr(path, 4), order=2),
        "unclean": lambda: ancestral(path, grids.log_snr(path, 4, clean=False)),
        "corrected": lambda: predictor_corrector(path, walk(path, 4)),
    }
    with pytest.raises(InputError, match="adds noise in every step"):
        steer(pair(path), plans[plan](), PathWeighted(FIRST), 4, key=key, shape=(2,))
