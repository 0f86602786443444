"""Training end to end on data whose law is known, with every option that changes what comes out."""

import functools
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import generate, simulate
from kinema.errors import InputError
from kinema.generate import VP, sample, training
from kinema.generate.run import begin_run, build, load_run, save_run
from kinema.generate.solver import make
from kinema.generate.training import train
from kinema.learn import load_model

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


def test_labels_make_it_conditional_and_rows_are_held_out(key, monkeypatch):
    batches, fit = [], training.learn.fit
    monkeypatch.setattr(training.learn, "fit", lambda *some, **more: batches.append(some[2]) or fit(*some, **more))
    x = np.concatenate([np.full((64, 2), -2.0), np.full((64, 2), 2.0)]) + 0.1 * np.asarray(jr.normal(key, (128, 2)))
    labels = np.repeat([0, 1], 64)
    run = train(x, key=key, steps=200, labels=labels, held_out=0.25, **TINY)
    assert run.config.sample.classes == 2
    gen = run.generator
    data = jax.vmap(lambda label: run.codec.decode(gen(0.3, jnp.zeros(2), label).data))(jnp.array([0, 1, 2]))
    assert float(data[0].max()) < -1.5
    assert float(data[1].min()) > 1.5
    assert float(jnp.abs(data[2]).max()) < 1.5  # the null label knows neither
    learnt, seen = batches[0], run.history.probes["held out"]
    assert len(np.unique(learnt["x1"], axis=0)) == len(learnt["cond"]) == 96 == run.config.training["rows"]
    assert np.array_equal(learnt["x1"][:, 0] > 0, learnt["cond"] == 1)
    assert seen.steps.tolist() == [0, 50, 100, 150, 200] and seen.values["."][-1] < 0.5 * seen.values["."][0]


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
    assert run.config.model["name"] == "mlp"


def test_network_is_told_that_there_are_times(key, monkeypatch):
    """A square film in colour would pass for a picture."""
    monkeypatch.setattr(training.learn, "fit", lambda model, *_, **__: SimpleNamespace(ema=model, history=None))
    x = np.asarray(jr.normal(key, (4, 8, 8, 3)))
    assert train(x, key=key).config.model["name"] == "image_unet"
    assert train(x, ts=np.arange(8.0), key=key).config.model["name"] == "motion_tokens"


@pytest.mark.parametrize(
    ("parameters", "distinct"),
    [
        ({}, {"distinct_axes": False, "distinct_bodies": False}),
        ({"mass": [1, 2]}, {"distinct_axes": False, "distinct_bodies": True}),
        ({"size": [1.0, 2.0]}, {"distinct_axes": True, "distinct_bodies": False}),
    ],
)
def test_network_treats_alike_what_the_world_exchanges(parameters, distinct, key, monkeypatch):
    world = simulate.make("collisions", frames=3, **parameters)
    motion = world.simulate(8, key=key)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training.learn,
            "fit",
            lambda model, *_, **__: seen.append(model) or SimpleNamespace(ema=model, history=None),
        )
        run = train(motion.states, ts=motion.ts, augment=world.augment, key=key, steps=1)
    assert run.config.model["name"] == "motion_tokens"
    assert {name: run.config.model[name] for name in distinct} == distinct


def shifted(key, one, *, by):
    TRACED.append(one.shape)
    return one + by


TRACED: list = []


def test_a_second_call_does_not_compile_again(key):
    for seed in range(3):
        augment = functools.partial(shifted, by=jnp.array(float(seed)))
        train(ring(jr.key(seed), 64), key=jr.key(seed), steps=4, batch_size=8, augment=augment, **TINY)
        TRACED.append("end")
    assert TRACED.index("end") > 0
    assert TRACED[TRACED.index("end") :] == ["end"] * 3


def stopped(folder, key, *, at, monkeypatch):
    """Train in a folder, with Ctrl-C after step `at`."""
    from kinema.learn import fitting

    kept = fitting._Run.go

    def go(self, length):
        kept(self, length)
        if self.step >= at:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting._Run, "go", go)
        train(ring(key, 64), key=key, steps=200, batch_size=8, folder=folder, **TINY)


def test_a_run_that_was_left_is_a_run(key, tmp_path, monkeypatch):
    stopped(tmp_path / "run", key, at=100, monkeypatch=monkeypatch)
    with pytest.warns(UserWarning, match=r"not finished, its last checkpoint is used \(step 100\); .* --resume"):
        run = load_run(tmp_path / "run")
    like = build(run.config, key=key)
    averaged = load_model(tmp_path / "run", like)
    np.testing.assert_array_equal(run.generator.raw(0.5, jnp.ones(2)), averaged.raw(0.5, jnp.ones(2)))
    whole = train(ring(key, 64), key=key, steps=200, batch_size=8, folder=tmp_path / "run", resume=True, **TINY)
    np.testing.assert_array_equal(run.codec.mean, whole.codec.mean)
    np.testing.assert_array_equal(
        load_run(tmp_path / "run").generator.raw(0.5, jnp.ones(2)), whole.generator.raw(0.5, jnp.ones(2))
    )
    with pytest.raises(InputError, match="another run"):
        train(ring(key, 32), key=key, steps=200, batch_size=8, folder=tmp_path / "run", resume=True, **TINY)
    with pytest.raises(InputError, match="already holds a run"):
        train(ring(key, 64) + 1, key=key, steps=200, batch_size=8, folder=tmp_path / "run", **TINY)
    np.testing.assert_array_equal(load_run(tmp_path / "run").codec.mean, whole.codec.mean)


def test_a_run_that_has_learnt_nothing(key, tmp_path):
    run = train(ring(key, 16), key=key, steps=1, batch_size=8, **TINY)
    begin_run(tmp_path / "run", run.config, run.codec)
    with pytest.raises(InputError, match=r"no weights at .*weights\.safetensors"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has not learnt anything yet; .* --resume"):
        load_run(tmp_path / "run")


def test_weights_are_not_trained_over(key, tmp_path):
    run = train(ring(key, 16), key=key, steps=1, batch_size=8, **TINY)
    save_run(tmp_path / "run", run)
    with pytest.raises(InputError, match=r"already holds a run \(weights\.safetensors\)"):
        train(ring(key, 16) + 1, key=key, steps=1, batch_size=8, folder=tmp_path / "run", **TINY)
    np.testing.assert_array_equal(load_run(tmp_path / "run").codec.mean, run.codec.mean)


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
        ({"data": np.full((16, 2), np.nan)}, "NaN or infinite in row 0"),
        ({"data": np.array([[0.0, 1.0], [np.inf, 2.0]])}, "infinite in row 1"),
        ({"data": 3.0}, "is empty"),
        ({"data": {}}, "no arrays"),
        ({"data": np.array([["a"], ["b"]])}, "real numbers"),
        ({"data": np.ones((4, 2)) * 1j}, "real numbers, got complex128"),
        ({"data": [[1.0], [1.0, 2.0]]}, "rows of different lengths"),
        ({"data": np.arange(24.0).reshape(4, 3, 2), "ts": np.array([0.0, 2, 1])}, r"ts must increase, got ts\[2\]"),
        ({"data": np.arange(24.0).reshape(4, 3, 2), "ts": np.arange(5.0)}, "5 frames"),
        ({"held_out": 1.0}, r"share of the rows in \[0, 1\) that leaves some on both sides, got 1.0"),
        ({"held_out": 0.01}, "leaves some on both sides, got 0.01"),
    ],
)
def test_refuses(options, message, key):
    data = options.pop("data", ring(key, 16))
    with pytest.raises(InputError, match=message):
        train(data, key=key, steps=1, **{**TINY, **options})


def test_public_name():
    assert generate.train is train
