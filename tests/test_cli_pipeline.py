"""The five verbs on a tiny job: what they write, what they say, and what they refuse once there are artifacts."""

import errno
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax.random as jr
import numpy as np
import pytest
from typer.testing import CliRunner

from kinema.cli import app
from kinema.cli.learn import DEFAULTS
from kinema.cli.observed import read_observed
from kinema.cli.sampling import prepare
from kinema.cli.training import keywords
from kinema.generate.run import read_config
from kinema.generate.solver.model_statistics import ModelStatistics
from kinema.motion import Trajectory
from kinema.motion.readers import read

TINY = ["--model", "mlp", "--size", "width=16", "--size", "depth=1", "--batch-size", "16", "--steps", "20"]


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def said(*words):
    """What a command prints as JSON."""
    return json.loads(run(*words, "--json").stdout)


def refused(*words, code=2):
    result = run(*words, code=code)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with balls.zarr, run/, noisy.npz, digits.npz and labelled/."""
    folder = tmp_path_factory.mktemp("job")
    run("simulate", "collisions", "-n", 32, "-p", "frames=4", "-o", folder / "balls.zarr")
    run("learn", folder / "balls.zarr", "-o", folder / "run", *TINY)
    data, random = read(folder / "balls.zarr"), np.random.default_rng(0)
    x = data.arrays["x"][:3] + 0.05 * random.normal(size=(3, 4, 2, 2))
    x[:, 1] = np.nan
    np.savez(folder / "noisy.npz", x=x, ts=data.ts)
    labels = random.integers(0, 3, 30)
    np.savez(folder / "digits.npz", x=labels[:, None] + 0.1 * random.normal(size=(30, 4)), labels=labels)
    run("learn", folder / "digits.npz", "-o", folder / "labelled", *TINY)
    return folder


@pytest.fixture
def copy(job, tmp_path):
    """A copy of run/ to damage."""
    return shutil.copytree(job / "run", tmp_path / "run")


def test_simulate_keeps_where_it_comes_from(job):
    motion = Trajectory.load(job / "balls.zarr")
    assert (motion.ensemble, len(motion)) == (32, 4)
    assert motion.meta["world"] == "collisions" and motion.meta["seed"] == 0
    assert motion.meta["parameters"]["frames"] == 4
    assert motion.meta["units"]["x"] and motion.meta["version"]


def test_simulate_again_gives_the_same_numbers(job, tmp_path):
    words = ["simulate", "collisions", "-n", 32, "-p", "frames=4"]
    facts = said(*words, "-o", tmp_path / "deep" / "er" / "balls.npz")
    assert facts["trajectories"] == 32 and facts["path"].endswith("balls.npz")
    first, second = read(job / "balls.zarr"), read(tmp_path / "deep" / "er" / "balls.npz")
    for name in ("x", "v"):
        np.testing.assert_array_equal(first.arrays[name], second.arrays[name])
    np.testing.assert_array_equal(first.constants["hits"], second.constants["hits"])
    run(*words, "--seed", 1, "-o", tmp_path / "other.zarr")
    assert (read(tmp_path / "other.zarr").arrays["x"] != first.arrays["x"]).any()


def test_learn_keeps_the_world(job):
    config = json.loads((job / "run" / "config.json").read_text())
    assert config["sample"]["world"]["world"] == "collisions"
    assert config["sample"]["world"]["parameters"]["frames"] == 4
    assert config["model"]["name"] == "mlp" and config["model"]["width"] == 16


def test_learn_resumes_as_it_was_asked(job, copy, tmp_path):
    assert "exists; --overwrite replaces it, --resume goes on" in refused("learn", job / "balls.zarr", "-o", copy)
    words = ["learn", job / "balls.zarr", "-o", copy, "--resume"]
    assert "--steps was 20 when the run began, got 30" in refused(*words, "--steps", 30)
    shutil.rmtree(copy / "checkpoints" / "step-00000020")
    (copy / "weights.safetensors").unlink()
    line = refused("generate", copy, "-o", tmp_path / "new.zarr")
    assert "has not learnt anything yet" in line and "--resume` goes on" in line
    run(*words, "--steps", 20)
    assert (copy / "weights.safetensors").read_bytes() == (job / "run" / "weights.safetensors").read_bytes()


def test_learn_overwrites_only_when_the_new_run_can_begin(job, copy):
    before = (copy / "weights.safetensors").read_bytes()
    words = ["learn", job / "balls.zarr", "-o", copy, "--overwrite"]
    refused(*words, "--model", "mpl")
    refused(*words, "--rate", -1)
    assert (copy / "weights.safetensors").read_bytes() == before
    run(*words, *TINY, "--seed", 5)
    assert (copy / "weights.safetensors").read_bytes() != before
    assert [entry.name for entry in copy.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_keeps_the_last_checkpoint(job, tmp_path, monkeypatch, number):
    from kinema.learn import checkpoint

    states = []

    def save_weights(path, *rest):
        states.extend([path] if path.name == checkpoint.STATE else [])
        if len(states) == 2:
            raise OSError(number, os.strerror(number), str(path))
        return kept(path, *rest)

    kept = checkpoint.save_weights
    words = ["learn", job / "balls.zarr", "-o", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_weights", save_weights)
        line = refused(*words, *TINY, code=3)
    assert os.strerror(number) in line and "step-00000000" in line
    run(*words, "--resume")
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (job / "run" / "weights.safetensors").read_bytes()


def test_learn_chooses_the_network_of_the_full_study(job, tmp_path, monkeypatch):
    from kinema.generate import training
    from kinema.studies.collisions_job import SIZES, learn_motion, simulate_all

    monkeypatch.setattr(training.learn, "fit", lambda model, *_, **__: SimpleNamespace(ema=model, history=None))
    sizes = replace(SIZES["full"], trajectories=8, motions=1)
    world, data, _ = simulate_all(sizes, key=jr.key(0))
    full = learn_motion(world, data, sizes, key=jr.key(0))
    data.save(tmp_path / "balls.zarr")
    chosen = training.train(**keywords(tmp_path / "balls.zarr", DEFAULTS), key=jr.key(0))
    assert chosen.config.model == full.config.model


def test_ctrl_c_while_learning(job, tmp_path, monkeypatch):
    from kinema.generate import training

    def interrupted(*_, **__):
        raise KeyboardInterrupt("left at step 10")

    monkeypatch.setattr(training.learn, "fit", interrupted)
    result = run("learn", job / "balls.zarr", "-o", tmp_path / "run", *TINY, code=130)
    assert result.stderr.startswith("stopped: ") and "--resume goes on" in result.stderr


def test_generate(job, tmp_path):
    facts = said("generate", job / "run", "-n", 5, "--solver", "heun", "--steps", 3, "-o", tmp_path / "new.zarr")
    motion = Trajectory.load(tmp_path / "new.zarr")
    assert motion.ensemble == 5 and motion.meta["world"] == "collisions"
    assert motion.meta["generated"]["evaluations"] == facts["evaluations"] >= 5
    np.testing.assert_allclose(motion.ts, Trajectory.load(job / "balls.zarr").ts)
    run("generate", job / "run", "-n", 5, "--solver", "heun", "--steps", 3, "-o", tmp_path / "new.npz")
    same = read(tmp_path / "new.npz")
    np.testing.assert_array_equal(same.arrays["x"], motion.states["x"])
    assert same.meta == {"source": "new.npz"} | motion.meta


def test_generate_in_parts_gives_the_same_samples(job, tmp_path, monkeypatch):
    from kinema.cli import sampling

    monkeypatch.setattr(sampling, "AT_ONCE", 2)
    run("generate", job / "run", "-n", 5, "--steps", 2, "-o", tmp_path / "five.npz")
    run("generate", job / "run", "-n", 3, "--steps", 2, "-o", tmp_path / "three.npz")
    np.testing.assert_array_equal(read(tmp_path / "five.npz").arrays["x"][:3], read(tmp_path / "three.npz").arrays["x"])


def test_labels_are_asked_for_and_kept(job, tmp_path):
    words = ["generate", job / "labelled", "-n", 4, "--steps", 2]
    run(*words, "-o", tmp_path / "all.npz")
    np.testing.assert_array_equal(read(tmp_path / "all.npz").labels, [0, 1, 2, 0])
    run(*words, "--label", "2,1", "--guidance", 2, "-o", tmp_path / "some.npz")
    np.testing.assert_array_equal(read(tmp_path / "some.npz").labels, [2, 1, 2, 1])
    assert "--label must be in 0 .. 2, got 3" in refused(*words, "--label", 3, "-o", tmp_path / "x.npz")
    assert "--label must be a class" in refused(*words, "--label", "two", "-o", tmp_path / "x.npz")
    assert "no ts" in refused(*words, "-o", tmp_path / "x.zarr")
    assert "does not generate motion" in refused("steer", job / "labelled", "-o", tmp_path / "x.npz")


def test_generate_refuses(job, tmp_path):
    words = ["generate", job / "run", "-o", tmp_path / "x.zarr"]
    assert "unknown solver 'dpmpp'; did you mean 'dpmpp-" in refused(*words, "--solver", "dpmpp")
    assert "unknown grid 'karas'; did you mean 'karras'" in refused(*words, "--grid", "karas")
    assert "chooses the grid too" in refused(*words, "--solver", "recommend", "--grid", "karras")
    assert "needs a run trained with labels" in refused(*words, "--label", 1)
    assert "needs a run trained with labels" in refused(*words, "--guidance", 2)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("ending", ["zarr", "npz"])
def test_law_projection_obeys_the_law(job, tmp_path, ending):
    out = tmp_path / f"steered.{ending}"
    facts = said("steer", job / "run", "-n", 4, "--steps", 3, "-o", out)
    assert facts["method"] == "law-projection" and facts["evaluations"] == 12
    laws = said("verify", out)["laws"]["steered"]
    assert all(laws[law]["mean"] <= 1e-5 for law in ("replay", "energy", "momentum", "kinematic", "wall", "ball"))


def test_best_of_is_better(job, tmp_path):
    words = ["steer", job / "run", "-n", 8, "--steps", 3, "--method", "best-of"]
    facts = said(*words, "--set", "n=4", "-o", tmp_path / "best.zarr")
    assert facts["evaluations"] == 8 * 4 * 3 and facts["rewards"] == 8 * 4
    run(*words, "--set", "n=1", "-o", tmp_path / "first.zarr")
    best, first = (
        said("verify", tmp_path / f"{name}.zarr")["laws"][name]["replay"]["mean"] for name in ("best", "first")
    )
    assert best < first


def test_restore(job, tmp_path):
    words = ["steer", job / "run", "--observed", job / "noisy.npz", "--steps", 3]
    facts = said(*words, "--noise", "x=.05", "-o", tmp_path / "restored.zarr")
    assert facts["samples"] == 3 and facts["method"] == "restore"
    truth, found = read(job / "balls.zarr").arrays["x"][:3], read(tmp_path / "restored.zarr").arrays["x"]
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.1
    assert "how noisy is x?" in refused(*words, "-o", tmp_path / "y.zarr")
    assert "--noise y is none of" in refused(*words, "--noise", "y=1", "-o", tmp_path / "y.zarr")
    assert "noise of x must be positive" in refused(*words, "--noise", "x=0", "-o", tmp_path / "y.zarr")
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 5, 2, 2)))
    words[3] = tmp_path / "short.npz"
    assert "has shape (3, 5, 2, 2); the run's motion is (n, 4, 2, 2)" in refused(
        *words, "--noise", "x=1", "-o", tmp_path / "y.zarr"
    )


@pytest.mark.parametrize("ending", ["zarr", "npz"])
def test_what_is_seen_of_a_file(job, tmp_path, ending):
    sample, motion = read_config(job / "run").sample, read(job / "balls.zarr").trajectory()[:3]
    states = {name: np.array(leaf) for name, leaf in motion.states.items()}
    states["v"][:, 2, 0] = np.nan
    seen = np.ones((3, 4), np.int32)
    seen[1, 0] = 0
    meta = {"noise": {"x": 0.1, "v": 0.2}}
    file = tmp_path / f"noisy.{ending}"
    if ending == "zarr":
        Trajectory(motion.ts, states, {"seen": seen}, meta, single=False).save(file)
    else:
        np.savez(file, **states, **{"ts": motion.ts, "constants/seen": seen})
    found = read_observed(file, sample, {"v": 0.3} if ending == "zarr" else {"x": 0.1, "v": 0.3})
    assert found.noise == {"x": 0.1, "v": 0.3}
    np.testing.assert_array_equal(found.seen, [[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]])
    np.testing.assert_array_equal(found.states["x"], states["x"])
    assert np.isfinite(found.states["v"]).all()


def test_steer_refuses(job, tmp_path):
    words = ["steer", job / "run", "-o", tmp_path / "x.zarr"]
    assert "unknown method 'best'; did you mean 'best-of'" in refused(*words, "--method", "best")
    assert "'m'" in refused(*words, "--method", "best-of", "--set", "m=2")
    assert "anchor must be 'middle' or a frame in 0 .. 3, got 9" in refused(*words, "--set", "anchor=9")
    assert "use a stochastic solver" in refused(*words, "--method", "particle-filter")
    assert "unknown world" in refused(*words, "--world", "colisions")


def test_verify_makes_a_page(job, tmp_path):
    run("generate", job / "run", "-n", 8, "--steps", 2, "-o", tmp_path / "new.zarr")
    result = run("verify", tmp_path / "new.zarr", "--against", job / "balls.zarr", "-o", tmp_path / "report")
    assert "replay" in result.stdout and "energy" in result.stdout and "held-out" in result.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Law errors" in page and "http://" not in page.replace("http://www.w3.org", "")
    found = said("verify", tmp_path / "new.zarr", "--against", job / "balls.zarr")
    assert found["world"] == "collisions" and found["samples"] == {"new": 8, "held-out": 32}
    assert set(found["distances"]) == {"energy", "sliced Wasserstein", "MMD", "classifier"}
    assert found["laws"]["held-out"]["replay"]["mean"] <= 1e-5 < found["laws"]["new"]["replay"]["mean"]


def test_verify_samples_that_are_no_motion(job, tmp_path, monkeypatch):
    from kinema.cli import findings

    # the others are compiled by the test above
    monkeypatch.setattr(findings, "classifier_two_sample", lambda *_: SimpleNamespace(accuracy=0.5))
    monkeypatch.setattr(findings, "sliced_wasserstein", lambda *_: 0.0)
    run("generate", job / "labelled", "-n", 8, "--steps", 2, "-o", tmp_path / "new.npz")
    found = said("verify", tmp_path / "new.npz", "--against", job / "digits.npz", "-o", tmp_path / "report")
    assert found["laws"] == {} and found["distances"]["energy"]["value"] > 0
    assert (tmp_path / "report" / "report.html").is_file()


# Damage


def test_a_damaged_store_names_the_chunk(job, tmp_path):
    store = shutil.copytree(job / "balls.zarr", tmp_path / "balls.zarr")
    chunk = max(
        (file for file in (store / "states" / "x").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    whole = chunk.read_bytes()
    for damage in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        chunk.write_bytes(damage)
        assert str(chunk.relative_to(store)) in refused("learn", store, "-o", tmp_path / "run", code=3)
        assert str(chunk.relative_to(store)) in refused("verify", store, code=3)
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused(copy, tmp_path):
    file = copy / "weights.safetensors"
    whole = file.read_bytes()
    for damage in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole[:40]):
        file.write_bytes(damage)
        assert str(file) in refused("generate", copy, "-o", tmp_path / "x.zarr", code=3)
    file.unlink()
    shutil.rmtree(copy / "checkpoints")
    assert str(file) in refused("generate", copy, "-o", tmp_path / "x.zarr")


def test_an_unfinished_run_generates_from_its_last_checkpoint(job, copy, tmp_path):
    (copy / "weights.safetensors").unlink()
    words = ["-n", 2, "--steps", 2, "-o"]
    assert "note: the run in" in run("generate", copy, *words, tmp_path / "x.npz").stderr
    run("generate", job / "run", *words, tmp_path / "y.npz")
    np.testing.assert_array_equal(read(tmp_path / "x.npz").arrays["x"], read(tmp_path / "y.npz").arrays["x"])


def test_weights_of_another_model_are_refused(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["width"] = 8
    (copy / "config.json").write_text(json.dumps(config))
    line = refused("generate", copy, "-o", tmp_path / "x.zarr")
    assert "another model" in line and "16" in line


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda config: config["sample"].update(names=["../../x", "v"]), 2),
        (lambda config: config["path"].update(name="os.system"), 2),
        (lambda config: config["model"].update(name="../../evil"), 2),
        (lambda config: config.update(sample=3), 3),
        (lambda config: config.update(path=3), 3),
        (lambda config: config.update(model=["mlp"]), 3),
        (lambda config: config["model"].update(name={}), 3),
        (lambda config: config["model"].pop("shape"), 3),
        (lambda config: config["sample"].update(shape="abc"), 3),
        (lambda config: config["sample"].update(names=[1]), 3),
        (lambda config: config.update(format=99), 2),
    ],
)
def test_a_tampered_description_is_refused(copy, tmp_path, change, code):
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    for out in ("x.zarr", "x.npz"):
        refused("generate", copy, "-n", 2, "--steps", 2, "-o", tmp_path / out, code=code)
        assert not (tmp_path / out).exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


def test_a_request_that_is_damaged(job, copy):
    whole = json.loads((copy / "request.json").read_text())
    for damaged in ("{", "[]", "{}", json.dumps(whole | {"steps": "many"}), json.dumps(whole | {"sizes": None})):
        (copy / "request.json").write_text(damaged)
        assert "request.json is damaged" in refused("learn", job / "balls.zarr", "-o", copy, "--resume", code=3)


def test_statistics_beside_the_weights_are_used(copy):
    asked = {"solver": "dpm-solver-v3", "steps": 4, "grid": None, "label": None, "guidance": None, "seed": 0}
    without = prepare(copy, 2, **asked).plan
    lam = np.linspace(-12.0, 12.0, 30)
    ModelStatistics(lam, 0.3 + 0 * lam, 0.1 + 0 * lam, 0 * lam).save(copy)
    assert without.notes and not prepare(copy, 2, **asked).plan.notes


def test_paths_that_begin_at_samples(job, tmp_path):
    rng = np.random.default_rng(0)
    x1, x0 = rng.normal(size=(64, 2)), rng.normal(size=(40, 2))
    np.savez(tmp_path / "x1.npz", data=x1)
    np.savez(tmp_path / "x0.npz", data=x0)
    np.savez(tmp_path / "pairs.npz", data=x1 + 0.1)
    small = ("--steps", 2, "--size", "width=4", "--size", "depth=1")
    for path, origin in (("interpolant", "x0.npz"), ("bridge", "pairs.npz")):
        out = tmp_path / path
        run("learn", tmp_path / "x1.npz", "-o", out, "--path", path, "--origin", tmp_path / origin, *small)
        made = tmp_path / f"{path}.npz"
        run("generate", out, "-n", 8, "--steps", 3, "--solver", "heun", "--origin", tmp_path / origin, "-o", made)
        assert np.load(made)["data"].shape == (8, 2)
    balls, motion = job / "balls.zarr", tmp_path / "motion"
    run("learn", balls, "-o", motion, "--model", "mlp", "--path", "bridge", "--origin", balls, *small)
    run("steer", motion, "-n", 4, "--steps", 2, "--origin", balls, "-o", tmp_path / "steered.zarr")
    bridge, noisy = ("--path", "bridge", *small), ("--noise", "x=0.1", "--noise", "v=0.1")
    refusals = [
        (("steer", motion, "-n", 4, "-o", tmp_path / "no.zarr"), "--origin is missing"),
        (
            ("steer", motion, "--observed", balls, *noisy, "--origin", balls, "-o", tmp_path / "no.zarr"),
            "begins at samples",
        ),
        (("learn", tmp_path / "x1.npz", "-o", tmp_path / "new", "--path", "bridge", *small), "origin is missing"),
        (
            ("learn", tmp_path / "x1.npz", "-o", tmp_path / "new", "--origin", tmp_path / "x0.npz", *bridge),
            "a row for each of data, 64, got 40",
        ),
        (
            ("learn", tmp_path / "x1.npz", "-o", tmp_path / "new", "--origin", tmp_path / "x0.npz", *small),
            "begins at noise or at the data",
        ),
        (("generate", tmp_path / "bridge", "-o", tmp_path / "no.npz"), "--origin is missing"),
        (
            ("generate", tmp_path / "bridge", "-n", 50, "-o", tmp_path / "no.npz", "--origin", tmp_path / "x0.npz"),
            "at least 50 samples",
        ),
        (
            ("generate", job / "labelled", "-n", 2, "-o", tmp_path / "no.npz", "--origin", tmp_path / "x0.npz"),
            "of no use",
        ),
    ]
    for arguments, message in refusals:
        assert message in refused(*arguments)
