"""What every optimizer of the folder promises."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema import learn
from kinema.errors import InputError
from kinema.learn.optim import ALL_OPTIMIZERS, adamp, adan, lion_k, sgdp

PARAMS = {
    "layers": [{"weight": jr.normal(jr.key(0), (3, 4)), "bias": jnp.zeros(3)}, None],
    "kernel": jr.normal(jr.key(1), (2, 3, 3)).astype(jnp.bfloat16),
    "scale": jnp.ones(()),
}
GRADS = jax.tree.map(lambda x: jr.normal(jr.key(2), x.shape, x.dtype), PARAMS)
every = pytest.mark.parametrize("name", ALL_OPTIMIZERS)


def two_steps(rule, params, grads):
    state = rule.init(params)
    for _ in range(2):
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@every
def test_any_tree(name):
    """Shapes and dtypes are kept, compiled is eager, mapped is looped, and the state keeps its form."""
    rule = ALL_OPTIMIZERS[name](0.01)
    eager, state = two_steps(rule, PARAMS, GRADS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), eager) == jax.tree.map(lambda x: (x.shape, x.dtype), PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), rule.init(PARAMS)
    )
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), eager, PARAMS)
    assert all(jax.tree.leaves(moved))
    pair = jax.tree.map(lambda g: jnp.stack([g, -2 * g]), GRADS)
    mapped = jax.jit(jax.vmap(lambda g: two_steps(rule, PARAMS, g)[0]))(pair)
    for k, grads in enumerate((GRADS, jax.tree.map(lambda g: -2 * g, GRADS))):
        one = two_steps(rule, PARAMS, grads)[0] if k else eager
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(mapped)):
            tolerance = 1e-2 if a.dtype == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(a.astype(jnp.float32), b[k].astype(jnp.float32), rtol=tolerance, atol=1e-6)


@every
def test_learns_and_resumes(name, tmp_path):
    """A run that was stopped goes on to the same bits."""

    def loss(w, batch, key):
        return jnp.mean((batch["x"] @ w["w"] - batch["y"]) ** 2), {}

    data = {"x": np.eye(2, dtype=np.float32), "y": np.array([[1.0], [2.0]], np.float32)}
    rule, start = ALL_OPTIMIZERS[name](0.02), {"w": jnp.full((2, 1), 0.1)}

    def fit(steps, **options):
        return learn.fit(
            start,
            loss,
            data,
            optimizer=rule,
            steps=steps,
            batch_size=2,
            key=jr.key(0),
            chunk=10,
            progress=False,
            **options,
        )

    whole = fit(20)
    fit(10, folder=tmp_path / "run")
    resumed = fit(20, folder=tmp_path / "run", resume=True)
    assert np.array_equal(whole.model["w"], resumed.model["w"])
    assert whole.history.metrics["loss"][-1] < whole.history.metrics["loss"][0]


@pytest.mark.parametrize("make", [adamp, sgdp, adan, lion_k])
def test_masks_of_every_kind(make):
    """A pattern, a function of name and leaf, a tree and a function of the tree choose the same leaves."""
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    extra = {"k": learn.optim.L1()} if make is lion_k else {}
    for mask in (
        "weight",
        lambda name, leaf: leaf.ndim > 1,
        {"weight": True, "bias": False},
        lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    ):
        rule = make(0.1, weight_decay=0.5, mask=mask, **extra)
        updates, _ = rule.update(zeros, rule.init(params), params)
        assert float(updates["bias"].max()) == 0 and float(updates["weight"].max()) < 0


@every
def test_complex_leaves_are_refused(name):
    with pytest.raises(InputError, match=r"leaf w: .* complex64"):
        ALL_OPTIMIZERS[name](0.1).init({"w": jnp.ones(2) + 1j})


def test_hyperparameters_may_be_injected():
    params = {"w": jnp.ones((2, 2))}
    for make in (adamp, adan):
        static = "channel_axis" if make is adamp else ()
        rule = optax.inject_hyperparams(make, static_args=static)(learning_rate=lambda step: 0.1 / (1 + step))
        plain = make(lambda step: 0.1 / (1 + step))
        ours, theirs = (two_steps(one, params, params)[0]["w"] for one in (rule, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
