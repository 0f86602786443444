import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import BackPropagation, GradientSource, LearnState, Trainable, advance, begin


def loss(model, batch, key):
    return jnp.mean((model["w"] - batch) ** 2), {"noise": jr.normal(key)}


def run(optimizer, ema, batches, key, params=None, source=None):
    params, static = Trainable().split({"w": jnp.zeros(2)} if params is None else params)
    state = begin(optimizer, params, ema)
    states, auxes = [state], []
    step = jax.jit(
        lambda state, batch: advance(
            state, static, batch, key, source=source or BackPropagation(loss), optimizer=optimizer, ema=ema
        )
    )
    for batch in batches:
        state, aux = step(state, batch)
        states.append(state)
        auxes.append(aux)
    return states, auxes


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_in_closed_form(x64, key, decay):
    batches = jr.normal(key, (30, 2))
    states, _ = run(optax.sgd(0.3), decay, batches, key, params={"w": jnp.zeros(2)})
    average = np.zeros(2)
    for k, state in enumerate(states[1:], start=1):
        d = min(decay, k / (9 + k))
        average = d * average + (1 - d) * np.asarray(state.params["w"])
        assert np.allclose(state.ema["w"], average, rtol=1e-6 if k / (9 + k) < decay else 1e-12)


def test_no_average():
    states, _ = run(optax.sgd(0.1), None, jnp.ones((3, 2)), jr.key(0))
    assert states[-1].ema is None


def test_half_precision_parameters_have_a_single_precision_average(key):
    params = {"w": jnp.full(2, 1.0, jnp.bfloat16)}
    states, _ = run(optax.sgd(0.25), 0.99, jnp.full((100, 2), 3.0, jnp.bfloat16), key, params)
    assert states[-1].params["w"].dtype == jnp.bfloat16 and states[-1].ema["w"].dtype == jnp.float32
    assert 2.9 < states[-1].ema["w"][0] < 3


def test_the_key_of_a_step_is_folded_from_its_number(key):
    _, auxes = run(optax.sgd(0.1), None, jnp.ones((4, 2)), key)
    for k, aux in enumerate(auxes):
        assert aux["noise"] == jr.normal(jr.fold_in(key, k))


def test_the_first_state_shares_no_buffer():
    params = {"w": jnp.zeros(2), "v": None}
    state = begin(optax.adam(0.1), params, 0.9)
    donated = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert params["w"].tolist() == [0, 0] and donated.ema["w"].tolist() == [1, 1]
    assert state.params["w"].is_deleted()


def test_a_population_is_one_more_axis(key):
    """Three members with their own weights and keys, mapped and one by one."""
    optimizer, source = optax.adam(0.1), BackPropagation(loss)
    starts, keys, batch = jr.normal(key, (3, 2)), jr.split(key, 3), jnp.ones(2)

    def three_steps(start, key):
        def body(state, _):
            return advance(state, {"w": None}, batch, key, source=source, optimizer=optimizer, ema=0.9)

        return jax.lax.scan(body, begin(optimizer, {"w": start}, 0.9), None, 3)

    states, aux = jax.jit(jax.vmap(three_steps))(starts, keys)
    for i in range(3):
        one, single = jax.jit(three_steps)(starts[i], keys[i])
        assert np.allclose(states.params["w"][i], one.params["w"], atol=1e-6)
        assert np.array_equal(aux["noise"][i], single["noise"])
    assert isinstance(states, LearnState) and states.step.tolist() == [3, 3, 3]


class Accumulated(GradientSource):
    """Mean over parts of the batch: a source around a source."""

    source: GradientSource
    parts: int

    def __call__(self, params, static, batch, key):
        pieces = batch.reshape(self.parts, -1, *batch.shape[1:])
        results = jax.lax.map(lambda piece: self.source(params, static, piece, key), pieces)
        return jax.tree.map(lambda x: x.mean(0), results)


class InHalf(GradientSource):
    """Forward and backward in bfloat16, parameters and gradients in float32: mixed precision is a source too."""

    source: GradientSource

    def __call__(self, params, static, batch, key):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        grads, aux = self.source(half, static, batch.astype(jnp.bfloat16), key)
        return jax.tree.map(lambda x: x.astype(jnp.float32), (grads, aux))


def test_accumulation_and_mixed_precision_are_sources_around_a_source(key):
    batches = jr.normal(key, (5, 8, 2))
    plain, auxes = run(optax.sgd(0.3), None, batches, key)
    parts, accumulated = run(optax.sgd(0.3), None, batches, key, source=Accumulated(BackPropagation(loss), 4))
    assert np.allclose(plain[-1].params["w"], parts[-1].params["w"], atol=1e-6)
    assert np.allclose(auxes[-1]["loss"], accumulated[-1]["loss"])
    half, _ = run(optax.sgd(0.3), None, batches, key, source=InHalf(BackPropagation(loss)))
    assert half[-1].params["w"].dtype == jnp.float32
    assert 0 < np.abs(half[-1].params["w"] - plain[-1].params["w"]).max() < 0.02


class NoLoss(GradientSource):
    def __call__(self, params, static, batch, key):
        return params, {"energy": jnp.zeros(())}


def test_a_source_without_a_loss_is_refused(key):
    with pytest.raises(InputError, match=r"must hold 'loss', NoLoss gave \['energy'\]"):
        run(optax.sgd(0.1), None, jnp.ones((1, 2)), key, source=NoLoss())
