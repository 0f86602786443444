import errno
import os
import resource

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema import learn
from kinema.errors import InputError, StoreCorrupt
from kinema.learn import BackPropagation, Probe, fit, load_model
from kinema.motion.disk import writing
from kinema.motion.weights import read_meta, read_specs

DATA = {"x": np.arange(24, dtype=np.float32).reshape(12, 2) / 24, "y": np.linspace(-1, 1, 12, dtype=np.float32)}
NORM = Probe("norm", lambda model, key: jnp.sum(model["net"].weight ** 2), every=10)


class Doubled(BackPropagation):
    """Another source that computes the same thing."""


def loss(model, batch, key):
    noise = 0.1 * jr.normal(key, batch["y"].shape)
    features = jnp.sin(batch["x"] @ model["frozen"])
    return jnp.mean((jax.vmap(model["net"])(features) - batch["y"] - noise) ** 2), {}


def model(width=3, frozen=1.0, rate=0.5, dtype=jnp.float32):
    net = eqx.nn.Linear(width, "scalar", key=jr.key(9))
    net = jax.tree.map(lambda x: x.astype(dtype), net)
    return {"net": net, "frozen": jnp.full((2, width), frozen), "rate": rate}


ADAM = learn.adam(0.05, 60)


def run(folder, **changes):
    settings = {"optimizer": ADAM, "steps": 60, "batch_size": 5, "key": jr.key(3), "chunk": 10, "checkpoint_every": 10}
    settings |= {"folder": folder, "trainable": "net/*", "probes": [NORM], "progress": False}
    given = {"model": model(), "objective": loss, "data": DATA, **settings, **changes}
    return fit(given.pop("model"), given.pop("objective"), given.pop("data"), **given)


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def test_what_a_folder_holds(tmp_path):
    result = run(tmp_path / "run")
    assert listing(tmp_path / "run") == [
        "checkpoints/step-00000050/history.safetensors",
        "checkpoints/step-00000050/state.safetensors",
        "checkpoints/step-00000060/history.safetensors",
        "checkpoints/step-00000060/state.safetensors",
        "frozen.safetensors",
        "history.json",
    ]
    state = tmp_path / "run/checkpoints/step-00000060/state.safetensors"
    assert {"params/net/weight", "ema/net/bias", "step"} < set(read_specs(state))
    assert read_meta(state)["step"] == 60 and read_meta(state)["run"]["batch_size"] == 5
    assert list(read_specs(tmp_path / "run/frozen.safetensors")) == ["frozen"]
    history = learn.History.load(tmp_path / "run/history.json")
    assert np.array_equal(history.loss.astype(np.float32), result.history.loss)
    assert history.probes["norm"].steps.tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_a_checkpoint_once_a_minute_unless_asked_for(tmp_path, monkeypatch):
    run(tmp_path / "a", checkpoint_every=None)
    assert sorted(os.listdir(tmp_path / "a/checkpoints")) == ["step-00000000", "step-00000060"]
    monkeypatch.setattr("kinema.learn.fitting.SECONDS", -1.0)
    run(tmp_path / "b", checkpoint_every=None)
    assert sorted(os.listdir(tmp_path / "b/checkpoints")) == ["step-00000050", "step-00000060"]


def test_a_model_is_loaded_with_what_does_not_learn(tmp_path):
    result = run(tmp_path / "run", model=model(frozen=2.0))
    for ema, truth in ((True, result.ema), (False, result.model)):
        loaded = load_model(tmp_path / "run", model(frozen=0.0), ema=ema)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, truth))
    before = load_model(tmp_path / "run", model(), ema=False, step=50)
    assert not np.array_equal(before["net"].weight, result.model["net"].weight)
    skeleton = eqx.filter_eval_shape(model)
    assert np.array_equal(load_model(tmp_path / "run", skeleton)["net"].bias, result.ema["net"].bias)
    with pytest.raises(InputError, match=r"net/weight is float32 \(1, 3\) in the file, float32 \(1, 4\) here"):
        load_model(tmp_path / "run", model(width=4))
    with pytest.raises(InputError, match=r"rate is 0\.5 in the file, 0\.7 here"):
        load_model(tmp_path / "run", model(rate=0.7))
    with pytest.raises(InputError, match="no checkpoint of step 30"):
        load_model(tmp_path / "run", model(), step=30)
    with pytest.raises(InputError, match="no checkpoint in"):
        load_model(tmp_path, model())


def test_half_precision_and_no_average(tmp_path):
    result = run(tmp_path / "half", model=model(dtype=jnp.bfloat16), steps=10)
    loaded = load_model(tmp_path / "half", model(dtype=jnp.bfloat16))
    assert loaded["net"].weight.dtype == jnp.bfloat16 and np.array_equal(loaded["net"].weight, result.ema["net"].weight)
    result = run(tmp_path / "plain", ema=None, steps=10)
    assert np.array_equal(load_model(tmp_path / "plain", model())["net"].weight, result.model["net"].weight)
    assert result.ema["net"] is not None and np.array_equal(result.ema["net"].bias, result.model["net"].bias)


def test_a_model_that_is_one_array(tmp_path):
    result = fit(
        jnp.ones(2),
        lambda w, b, k: (jnp.sum(w**2), {}),
        optimizer=optax.sgd(0.1),
        steps=3,
        key=jr.key(0),
        folder=tmp_path / "run",
        progress=False,
    )
    assert np.array_equal(load_model(tmp_path / "run", jnp.zeros(2), ema=False), result.model)


def test_a_resumed_run_writes_the_same_bytes(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", steps=30)
    other = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, model()["net"])
    resumed = run(tmp_path / "parts", model={**model(), "net": other}, resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert np.array_equal(whole.history.loss, resumed.history.loss) and len(resumed.history) == 60


def test_resume_starts_where_nothing_is_and_returns_what_is_finished(tmp_path):
    first = run(tmp_path / "run", resume=True)
    before = contents(tmp_path / "run")
    again = run(tmp_path / "run", resume=True)
    assert np.array_equal(first.ema["net"].weight, again.ema["net"].weight) and again.step == 60
    assert contents(tmp_path / "run") == before
    with pytest.raises(InputError, match="at step 60 already, steps=40"):
        run(tmp_path / "run", resume=True, steps=40)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer": learn.adam(0.06, 60)}, "optimizer's rule, rate or schedule differs"),
        ({"optimizer": learn.adam(0.05, 61)}, "optimizer's rule, rate or schedule differs"),
        ({"optimizer": optax.sgd(0.1)}, r"optimizer state 1/0/count is int32 \(\) in the file, absent here"),
        ({"batch_size": 6}, "batch_size was 5, is 6"),
        ({"key": jr.key(4)}, r"key was threefry2x32 \[0, 3\], is threefry2x32 \[0, 4\]"),
        ({"ema": 0.9}, "ema was 0.999, is 0.9"),
        ({"model": model(width=4)}, r"model leaf net/weight is float32 \(1, 3\) in the file, float32 \(1, 4\) here"),
        ({"model": model(frozen=2.0)}, "frozen model leaf frozen has other values"),
        ({"model": model(rate=2.0)}, r"rate is 0\.5 in the file, 2\.0 here"),
        ({"trainable": "net/bias"}, r"model leaf net/weight is float32 \(1, 3\) in the file, absent here"),
        ({"data": {**DATA, "z": DATA["y"]}}, r"data leaf z was absent, is float32 \(12,\)"),
        ({"data": {**DATA, "y": -DATA["y"]}}, "data has other values"),
        ({"objective": Doubled(loss)}, "gradient source was BackPropagation, is Doubled"),
    ],
)
def test_another_run_is_not_resumed_and_what_differs_is_named(shared, changes, message):
    with pytest.raises(InputError, match=f"another.*{message}"):
        run(shared, resume=True, **changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "run"
    run(folder)
    return folder


def test_another_version_of_jax_cannot_compare_optimizers(shared, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9.9")
    assert run(shared, resume=True, optimizer=learn.adam(0.06, 60)).step == 60


# Damage


def flip(path, place=-5):
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "run", steps=30)
    flip(tmp_path / "run/checkpoints/step-00000030/state.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000030/state.* does not match its SHA-256; the checkpoint before it"):
        run(tmp_path / "run", resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "run")


@pytest.mark.parametrize("name", ["state", "history"])
def test_nothing_whole_is_an_error_that_names_the_tensor(tmp_path, name):
    run(tmp_path / "run", steps=20)
    for step in (10, 20):
        flip(tmp_path / f"run/checkpoints/step-{step:08d}/{name}.safetensors")
    with pytest.warns(UserWarning), pytest.raises(StoreCorrupt, match=r"step-00000010.*tensor \S+ does not match"):
        run(tmp_path / "run", resume=True)


def test_a_checkpoint_cut_short_or_without_a_file(tmp_path):
    run(tmp_path / "run", steps=20)
    state = tmp_path / "run/checkpoints/step-00000020/state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="cut short"):
        assert load_model(tmp_path / "run", model())["net"].weight.shape == (1, 3)
    state.unlink()
    with pytest.warns(UserWarning, match="lacks state"):
        load_model(tmp_path / "run", model())


# Folders


def test_a_folder_that_holds_a_run_is_not_written_over(shared):
    before = contents(shared)
    with pytest.raises(InputError, match=r"already holds a run .*resume=True"):
        run(shared)
    assert contents(shared) == before


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, steps=10)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        run(tmp_path / "file" / "run")


def test_leftovers_of_a_kill_are_removed(tmp_path):
    run(tmp_path / "run", steps=10)
    leftover = tmp_path / "run/checkpoints/.new"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    run(tmp_path / "run", resume=True)
    assert not leftover.exists() and len(listing(tmp_path / "run")) == 6


def test_two_processes_do_not_write_one_run(tmp_path):
    run(tmp_path / "run", steps=10)
    with writing(tmp_path / "run/checkpoints"), pytest.raises(InputError, match="another process is writing"):
        run(tmp_path / "run", resume=True)
    assert run(tmp_path / "run", resume=True).step == 60


def check_full(folder, message):
    """The run stopped after step 20; the checkpoint of step 20 is whole, nothing of step 30 is left."""
    assert "checkpoint of step 30 could not be written" in message and f"{folder}/checkpoints/step-00000020" in message
    assert sorted(os.listdir(folder / "checkpoints")) == ["step-00000010", "step-00000020"]
    assert load_model(folder, model(), step=20)["net"].weight.shape == (1, 3)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(model, key):
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left") as error:
        run(tmp_path / "run", probes=[Probe("fill", fill, every=[25])])
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    check_full(tmp_path / "run", str(error.value))


def test_a_real_limit_on_files_leaves_the_last_good_checkpoint(tmp_path):
    """The system itself refuses to write more than 600 bytes a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(model, key):
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))

    try:
        with pytest.raises(OSError, match="File too large") as error:
            run(tmp_path / "run", probes=[Probe("fill", fill, every=[25])])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_full(tmp_path / "run", str(error.value))


def test_a_full_disk_does_not_hurt_what_comes_after(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", probes=())
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"step 0 .*there is no checkpoint yet"):
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        run(tmp_path / "run", probes=())
    assert np.array_equal(run(tmp_path / "run", probes=(), resume=True).model["net"].weight, whole.model["net"].weight)
