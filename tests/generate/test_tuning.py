"""A tuned plan beats the one it came from; untouched knobs are that very plan."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import VP, Bridge, Linear, MixturePosterior, sample, solver
from kinema.generate.pilot import fine_plan, mean_squares, rms
from kinema.generate.solver import Plan, grids
from kinema.generate.tuning import Form, Pupil, tune_plan, unroll

PATH = VP()
GRID = grids.log_snr(PATH, 4, high=3.5)
PLANS = {
    "dpmpp": solver.dpmpp(PATH, GRID),
    "unipc": solver.unipc(PATH, GRID),
    "ghvb": solver.ghvb(PATH, GRID, number=2.5),
    "heun": solver.heun(PATH, GRID),
    "velocity": solver.adams(PATH, grids.uniform_time(PATH, 4), extrapolates="velocity"),
}


@pytest.fixture(scope="module")
def gen():
    return MixturePosterior(PATH, jnp.array([[-1.0, 0.3], [0.8, 1.0], [0.0, -1.2]]), 0.05)


@pytest.mark.parametrize("name", PLANS)
def test_untouched_knobs_are_the_plan(gen, name):
    """Form by form the unrolled plan is the plan: anchors, running averages and other fields are only combinations."""
    plan = PLANS[name]
    form = Form.of(plan, gen)
    again = form.plan(form.knobs(), PATH)
    assert again.nfe == plan.nfe and again.extrapolates == "data"
    alpha, beta = unroll(plan, PATH)
    np.testing.assert_allclose(unroll(again, PATH)[0], alpha, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(unroll(again, PATH)[1], beta, rtol=1e-3, atol=3e-4)


def test_consistent_plans_have_shares_that_add_to_one(gen):
    """What holds the data or the noise exact gives every point's data part whole to the predictions."""
    for name in ("dpmpp", "unipc", "ghvb", "heun"):
        form = Form.of(PLANS[name], gen)
        np.testing.assert_allclose(np.sum(form.weights, 1), 1.0, atol=1e-9)
        np.testing.assert_allclose(form.excess, 0.0, atol=1e-9)


def test_tuned_is_better_and_a_plan_like_others(gen, key):
    """On starts that neither taught nor chose; the loop that is differentiated is the loop that samples."""
    plan, teacher = PLANS["dpmpp"], fine_plan(gen, 64)
    tuned = tune_plan(plan, gen, teacher, shape=(2,), key=key, n=256, steps=100, batch_size=64, progress=False)
    options = {"key": jr.key(9), "shape": (2,)}
    truth = sample(gen, teacher, 256, **options).x
    before, after = (rms(mean_squares(sample(gen, one, 256, **options).x, truth)) for one in (plan, tuned))
    assert after < 0.8 * before
    assert tuned.nfe == plan.nfe and "tuned to" in tuned.notes[-1]
    np.testing.assert_array_equal(
        sample(gen, Plan.from_json(tuned.to_json()), 256, **options).x, sample(gen, tuned, 256, **options).x
    )
    form = Form.of(tuned, gen)
    pupil = Pupil(gen, form.knobs(), form.template(gen), form, True)
    start = jr.normal(key, (4, 2)) * jnp.float32(tuned.grid.s[0])
    ends = sample(gen, form.plan(form.knobs(), PATH), 4, start=start, **options).x
    np.testing.assert_allclose(jax.vmap(lambda x: pupil(x, None))(start), ends, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_bettered_is_given_back(gen, key):
    """The plan itself as its teacher: there is nothing to gain."""
    plan = PLANS["dpmpp"]
    same = tune_plan(plan, gen, plan, shape=(2,), key=key, n=256, steps=100, batch_size=64, progress=False)
    assert same is plan


def test_bad_input_is_refused(gen, key):
    plan, noisy = PLANS["dpmpp"], solver.ancestral(PATH, GRID)
    bridge = MixturePosterior(Bridge(), np.zeros((1, 2)), 1.0)
    for word, change in (
        ("plan .* adds noise", {"plan": noisy}),
        ("teacher .* adds noise", {"teacher": noisy}),
        ("another path", {"gen": MixturePosterior(Linear(), np.zeros((1, 2)), 1.0)}),
        ("gen must have a data prediction", {"gen": bridge}),
        ("n must", {"n": 3}),
        ("steps", {"steps": 0}),
        ("batch_size must be at most", {"n": 16, "batch_size": 9}),
        ("rate", {"rate": 0.0}),
        ("cond", {"cond": jnp.zeros(3)}),
        ("shape", {"shape": (3,)}),
    ):
        given = {
            "plan": plan,
            "gen": gen,
            "teacher": plan,
            "shape": (2,),
            "key": key,
            "n": 16,
            "batch_size": 8,
        } | change
        with pytest.raises(InputError, match=word):
            tune_plan(given.pop("plan"), given.pop("gen"), given.pop("teacher"), **given)
