"""Latent and generative SDEs: KL 0 where posterior is prior, the KL of two Ornstein-Uhlenbeck laws, clipped critics."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.learn import Adversaries, LatentLoss, WassersteinSource, clipped
from kinema.learn.step import advance, begin
from kinema.models import LatentSDE, NeuralCDE, NeuralSDE, VectorField

TS = jnp.linspace(0.0, 1.0, 5)


def latent(prior, posterior, sigma, key):
    """A latent SDE of one number with given drifts, which starts at N(0, 1) in both."""
    model = LatentSDE(1, latent=1, context=2, width=4, noise=sigma, key=key)
    zero = jax.tree.map(jnp.zeros_like, model.first)
    return eqx.tree_at(lambda m: (m.prior, m.posterior, m.first), model, (prior, posterior, zero))


def test_kl_of_two_ornstein_uhlenbeck_laws(key):
    """Drifts -b z and -a z: KL = (a - b)² / 2σ² ∫ E z² dt, and E z² from 1 is a recursion of Euler's steps."""
    a, b, sigma, steps = 1.5, 0.5, 0.8, 10
    model = latent(lambda z: -b * z, lambda z, h, x, left: -a * z, sigma, key)
    run = eqx.filter_jit(eqx.filter_vmap(lambda k: model.infer(TS, jnp.zeros((5, 1)), key=k, substeps=steps).kl_path))
    kl = run(jr.split(key, 3000))
    dt, square, truth = 0.25 / steps, 1.0, 0.0
    for _ in range(4 * steps):
        truth += dt * (a - b) ** 2 / (2 * sigma**2) * square
        square = (1 - a * dt) ** 2 * square + sigma**2 * dt
    assert_within_error(kl.mean(), truth, standard_error=kl.std() / 3000**0.5)
    same = latent(lambda z: -z, lambda z, h, x, left: -z, sigma, key).infer(TS, jnp.ones((5, 1)), key=key)
    assert same.kl_path == 0 and same.kl_start == 0


def test_loss_is_misfit_and_kl(key):
    """Frames that were not observed do not count; with weight 0 only the misfit does."""
    model = latent(lambda z: -z, lambda z, h, x, left: 0 * z, 1.0, key)
    rows = {"ts": jnp.stack([TS, TS]), "x": jnp.ones((2, 5, 1)), "seen": jnp.zeros((2, 5, 1), bool)}
    loss, metrics = LatentLoss(0.5, weight=0.0)(model, rows, key)
    assert loss == 0 and metrics["misfit"] == 0 and metrics["kl"] > 0
    full = LatentLoss(0.5)(model, rows, key)
    assert full[0] == pytest.approx(float(metrics["kl"]) / 5, rel=1e-5)


def test_adversaries_move_apart_and_stay_clipped(key):
    """One step: the generator's part of the gap goes down, the critic's up, and its weights lie within 1 / outputs."""
    key_generator, key_critic, key_data, key_step = jr.split(key, 4)
    generator = NeuralSDE(1, hidden=3, noises=2, width=4, key=key_generator)
    critic = NeuralCDE(2, 1, hidden=3, width=4, key=key_critic)
    rows = {"ts": jnp.tile(TS, (8, 1)), "x": jr.normal(key_data, (8, 5, 1))}
    params, static = eqx.partition(Adversaries(generator, critic), eqx.is_inexact_array)
    source, optimizer = WassersteinSource(dt=0.125), clipped(optax.sgd(1e-2))
    step = eqx.filter_jit(lambda s: advance(s, static, rows, key_step, source=source, optimizer=optimizer, ema=None))
    first, _ = step(begin(optimizer, params, None))
    layers = [*first.params.critic.start.layers, *first.params.critic.field.layers, first.params.critic.readout]
    for layer in layers:
        assert jnp.abs(layer.weight).max() <= 1 / layer.weight.shape[1] + 1e-7
    assert not jnp.array_equal(first.params.generator.readout.weight, params.generator.readout.weight)
    pair = eqx.tree_at(lambda p: p.generator, first.params, params.generator)  # clipped, so a small step stays inside
    after, gap = step(begin(optimizer, pair, None))
    better_critic = eqx.tree_at(lambda p: p.critic, pair, after.params.critic)
    better_generator = eqx.tree_at(lambda p: p.generator, pair, after.params.generator)
    wider, narrower = (step(begin(optimizer, one, None))[1]["loss"] for one in (better_critic, better_generator))
    assert narrower < gap["loss"] < wider


def test_bad_input(key):
    generator, critic = NeuralSDE(1, hidden=2, width=2, key=key), NeuralCDE(3, 1, hidden=2, width=2, key=key)
    with pytest.raises(InputError, match="2 channels and one output, got 3"):
        Adversaries(generator, critic)
    fitting = NeuralCDE(2, 1, hidden=2, width=2, key=key)
    steep = eqx.tree_at(lambda c: c.field, fitting, VectorField(2, 4, width=2, activation=jax.nn.softplus, key=key))
    with pytest.warns(UserWarning, match=r"critic.field: its activation"):
        Adversaries(generator, steep)
    with pytest.raises(InputError, match="noise must be positive"):
        LatentLoss(0.0)
    with pytest.raises(InputError, match="noise must be positive"):
        LatentSDE(1, noise=-1.0, key=key)
    with pytest.raises(InputError, match=r"x must have shape \(5, 1\)"):
        getattr(LatentSDE.infer, "__wrapped__", LatentSDE.infer)(LatentSDE(1, key=key), TS, jnp.ones((4, 1)), key=key)
