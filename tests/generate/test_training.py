"""Training end to end on data whose law is known, with every option that changes what comes out."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import generate
from kinema.errors import InputError
from kinema.generate import VP, sample
from kinema.generate.run import load_run
from kinema.generate.solver import make
from kinema.generate.training import train

TINY = {"model": "mlp", "sizes": {"width": 32, "depth": 2}, "progress": False}


def ring(key, n=512):
    """Points about a circle of radius 3 around (10, -5)."""
    key_angle, key_gap = jr.split(key)
    angle = 2 * jnp.pi * jr.uniform(key_angle, (n,))
    radius = 3 + 0.1 * jr.normal(key_gap, (n,))
    return np.asarray(jnp.stack([10 + radius * jnp.cos(angle), -5 + radius * jnp.sin(angle)], 1))


def test_learns_a_ring_in_physical_units(key, tmp_path):
    run = train(ring(key), key=key, steps=1000, folder=tmp_path / "run", **TINY)
    assert run.shape == (2,)
    x = sample(run.generator, make("dpmpp-2m", run.generator.path, 12), 256, key=key, shape=run.shape).x
    x = np.asarray(jax.vmap(run.codec.decode)(x))
    np.testing.assert_allclose(x.mean(0), [10, -5], atol=0.6)
    radius = np.linalg.norm(x - [10, -5], axis=1)
    np.testing.assert_allclose(radius.mean(), 3, atol=0.5)
    assert radius.std() < 0.9  # of normal data with this variance: 1.4
    loss = run.history.metrics["loss"]
    assert loss[-50:].mean() < 0.8 * loss[:50].mean()
    # The folder holds the same generator, and remembers how it came to be.
    back = load_run(tmp_path / "run")
    np.testing.assert_array_equal(back.generator(0.5, jnp.ones(2)).data, run.generator(0.5, jnp.ones(2)).data)
    assert back.config.training["steps"] == 1000
    assert (tmp_path / "run" / "history.json").is_file()


def test_labels_make_it_conditional(key):
    x = np.concatenate([np.full((64, 2), -2.0), np.full((64, 2), 2.0)]) + 0.1 * np.asarray(jr.normal(key, (128, 2)))
    labels = np.repeat([0, 1], 64)
    run = train(x, key=key, steps=200, labels=labels, **TINY)
    assert run.config.sample.classes == 2
    gen = run.generator
    data = jax.vmap(lambda label: run.codec.decode(gen(0.3, jnp.zeros(2), label).data))(jnp.array([0, 1, 2]))
    assert float(data[0].max()) < -1.5
    assert float(data[1].min()) > 1.5
    assert float(jnp.abs(data[2]).max()) < 1.5  # the null label knows neither


def test_motion_of_named_arrays_and_its_world(key):
    frames = np.linspace(0, 1, 5)
    motion = {"x": np.asarray(jr.normal(key, (32, 5, 2))), "v": np.asarray(jr.normal(jr.fold_in(key, 1), (32, 5, 2)))}
    world = {"name": "collisions", "balls": 2}
    run = train(motion, key=key, steps=2, ts=frames, world=world, path=VP(), predicts="noise", weight="noise", **TINY)
    sample_spec = run.config.sample
    assert (sample_spec.shape, sample_spec.names) == ((5, 2, 2), ("v", "x"))
    assert (sample_spec.ts, sample_spec.world) == (tuple(frames), world)
    assert run.config.path["name"] == "vp"
    assert run.config.predicts == run.generator.predicts == "noise"
    assert run.codec.decode(jnp.zeros((5, 2, 2)))["x"].shape == (5, 2)


def test_augmentation_acts_in_physical_units(key):
    """Data at 0 and 1 that is always shifted by 5: the model never sees anything else."""
    x = np.asarray(jr.bernoulli(key, shape=(256, 1)), np.float32)
    run = train(x, key=key, steps=200, augment=lambda key, one: one + 5, times="uniform", **TINY)
    x = sample(run.generator, make("euler", run.generator.path, 8), 64, key=key, shape=(1,)).x
    assert 4.5 < float(jax.vmap(run.codec.decode)(x).mean()) < 6.5


def test_network_is_chosen_by_the_shape(key):
    run = train(ring(key, 16), key=key, steps=1, batch_size=8, progress=False)
    assert run.config.model["name"] in ("mlp",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.zeros(3, int)}, "16 whole numbers"),
        ({"labels": np.zeros(16)}, "whole numbers"),
        ({"labels": np.full(16, -1)}, "start at 0"),
        ({"model": "mpl"}, "did you mean 'mlp'"),
        ({"predicts": "future"}, "future"),
        ({"weight": "noises"}, "did you mean 'noise'"),
        ({"data": np.zeros((16, 2))}, "must vary"),
        ({"data": np.zeros((0, 2))}, "empty"),
        ({"data": np.full((16, 2), np.nan)}, "finite"),
        ({"data": 3.0}, "ensemble axis"),
    ],
)
def test_refuses(options, message, key):
    data = options.pop("data", ring(key, 16))
    with pytest.raises(InputError, match=message):
        train(data, key=key, steps=1, **{**TINY, **options})


def test_public_name():
    assert generate.train is train
