"""Truth: what comes back from a run folder is what went in, to the bit; damage and mix-ups are named."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import models
from kinema.errors import InputError, StoreCorrupt
from kinema.generate import EDM, VE, VP, Linear, SubVP
from kinema.generate.codec import Codec
from kinema.generate.generator import Generator
from kinema.generate.noise import NoiseLaw
from kinema.generate.path import PATHS, MeanReverting, Path
from kinema.generate.run import Run, RunConfig, SampleSpec, build, load_run, path_spec, read_config, save_run

SPEC = models.spec("mlp", shape=(3,), width=8, depth=1)
EXAMPLES = [VP(), SubVP(beta_max=17.5), VE(sigma_max=3.25), EDM(rho=3.0), Linear(t_max=0.999)]


def make(path=None, spec=SPEC, **options) -> Run:
    sample = SampleSpec((3,), ("v", "x"), (0.0, 0.1, 0.3), None, {"name": "collisions", "balls": 2})
    config = RunConfig(path_spec(VP() if path is None else path), spec, sample, **options)
    gen = build(config, key=jr.key(1))
    # The output layer starts at zero: a network that tells its weights apart is wanted.
    gen = jax.tree.map(lambda w: w + 0.1 if isinstance(w, jax.Array) else w, gen)
    return Run(gen, Codec(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.5, 2.5]), ("v", "x")), config)


@pytest.fixture
def folder(tmp_path):
    save_run(tmp_path / "run", make())
    return tmp_path / "run"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: type(path).__name__)
def test_round_trip(path, tmp_path):
    run = make(path, predicts="velocity", sigma_data=0.7, training={"steps": 3})
    save_run(tmp_path, run)
    back = load_run(tmp_path)
    assert back.config == run.config
    assert back.generator.path == path
    assert (back.generator.predicts, back.generator.sigma_data) == ("velocity", 0.7)
    for a, b in zip(jax.tree.leaves(run.generator), jax.tree.leaves(back.generator), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(run.codec.std, back.codec.std)
    x = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(run.generator(0.5, x).data, back.generator(0.5, x).data)
    assert back.shape == (3,)


def test_a_table_of_the_schedule_is_part_of_the_path():
    path = MeanReverting.tabulated([-0.001, -1.0, -5.0])
    spec = json.loads(json.dumps(path_spec(path)))
    assert PATHS[spec.pop("name")](**spec) == path
    np.testing.assert_allclose(path.log_alpha(jnp.array([0.0, 0.5, 1.0])), [-5.0, -1.0, -0.001], rtol=1e-5)


def test_a_second_save_replaces_the_first(folder):
    save_run(folder, make(Linear()))
    assert isinstance(load_run(folder).generator.path, Linear)


def test_config_is_plain_json(folder):
    content = json.loads((folder / "config.json").read_text())
    assert content["path"]["name"] == "vp"
    assert content["model"]["width"] == 8
    assert read_config(folder) == make().config


def test_damaged_weights(folder):
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=r"weights\.safetensors"):
        load_run(folder)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreCorrupt, match=r"weights\.safetensors"):
        load_run(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"text"', "{}", '{"format": 1}', '{"format": "1", "sample": {}}', "\x00"]
)
def test_damaged_description(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(StoreCorrupt, match=r"config\.json"):
        load_run(folder)


def test_a_size_beyond_the_weights(folder):
    edit(folder, lambda content: content["model"].update(depth=10**9))
    with pytest.raises(StoreCorrupt, match=r"says depth=1000000000, but weights.safetensors holds \d+ numbers"):
        load_run(folder)


def test_weights_of_another_model(folder, tmp_path):
    save_run(tmp_path / "other", make(spec=models.spec("mlp", shape=(3,), width=16, depth=1)))
    (tmp_path / "other" / "weights.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(InputError, match="net/"):
        load_run(folder)


def edit(folder, change):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["path"].update(name="vq"), "unknown path 'vq'"),
        (lambda c: c["path"].update(beta=1.0), "parameters that it does not take"),
        (lambda c: c["model"].update(name="mlq"), "did you mean 'mlp'"),
        (lambda c: c["model"].update(widths=3), "widths"),
        (lambda c: c.update(format=99), "newer Kinema"),
        (lambda c: c.update(predicts="future"), "future"),
    ],
)
def test_descriptions_that_cannot_be_built(folder, change, message):
    edit(folder, change)
    with pytest.raises(InputError, match=message):
        load_run(folder)


def test_not_a_run(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_run(tmp_path)


def test_weights_are_missing(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises((InputError, StoreCorrupt), match=r"weights\.safetensors"):
        load_run(folder)


class Flat(NoiseLaw):
    gaussian = False

    def sample(self, key, like):
        return like

    def log_prob(self, z):
        return jnp.zeros(())

    def score(self, z):
        return z


class Own(Path):
    noise: NoiseLaw = Flat()
    origin: str = "none"
    t_min: float = 0.0
    t_max: float = 1.0

    def coefficients(self, t):
        return t, 0 * t, 1 - t


def test_paths_that_a_folder_cannot_hold():
    with pytest.raises(InputError, match="Own is not one of the named paths"):
        path_spec(Own())
    with pytest.raises(InputError, match="its own noise law"):
        path_spec(VP(noise=Flat()))


def test_generator_needs_nothing_of_the_codec():
    run = make()
    assert isinstance(run.generator, Generator)
    assert replace(run, history=None).history is None
