"""The program itself: help, names, refusals, exit codes. Nothing here compiles anything."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from kinema.cli import app, shell
from kinema.errors import InputError

VERBS = ("simulate", "learn", "generate", "steer", "verify", "study", "report", "list", "demo", "bench")


def run(*words, **options):
    return CliRunner().invoke(app, [str(word) for word in words], **options)


def refused(*words, code=2):
    """The one line that a command is refused with."""
    result = run(*words)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_help_shows_all_verbs():
    result = run("--help")
    assert result.exit_code == 0
    assert all(f" {verb} " in result.output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_nothing_swallowed_as_markup(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output and " . " not in result.output


def test_help_is_fast_and_imports_no_jax():
    script = "import sys, kinema.cli as c\ntry: c.main()\nfinally: print('jax' in sys.modules, 'numpy' in sys.modules)"
    # processor time: the machine may have other work
    spent = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert done.stdout.endswith("False False\n")
    assert min(spent) <= 0.4


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith("kinema 0.") and "jax 0." in result.output


def test_no_arguments_show_the_help():
    assert "simulate" in run().output


def test_list_is_made_without_jax():
    script = "import sys, kinema.cli as c\ntry: c.main()\nfinally: print('jax' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, "list", "--json"], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    listed = json.loads(done.stdout)
    assert set(listed) == {"worlds", "models", "paths", "solvers", "grids", "methods", "studies"}
    assert (
        "collisions" in listed["worlds"] and "dpmpp-3m" in listed["solvers"] and "law-projection" in listed["methods"]
    )


def test_listed_names_are_the_registered_ones():
    from kinema import models, simulate
    from kinema.cli import names
    from kinema.generate.path import PATHS

    assert names.worlds() == sorted(simulate.worlds())
    assert names.models() == sorted(models.names())
    assert names.paths() == sorted(PATHS)


def test_list_of_one_kind():
    result = run("list", "worlds")
    assert "collisions" in result.output and "dpmpp" not in result.output
    assert "did you mean 'worlds'" in refused("list", "world")


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["simulate", "coll"], "collisions"),
        (["generate", "run", "--solver", "dpm"], "dpmpp-2m"),
        (["steer", "run", "--method", "law"], "law-projection"),
        (["lear"], "learn"),
    ],
)
def test_completion_knows_names(words, wanted):
    words = ["kinema", *words]
    environment = {
        "_KINEMA_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="kinema")
    assert wanted in result.output.split()


def test_a_wrong_verb_suggests_the_right_one():
    result = run("simulat")
    assert result.exit_code == 2 and "Did you mean 'simulate'?" in result.stderr


# Names


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["simulate", "colisions"], "unknown world 'colisions'; did you mean 'collisions'?"),
        (
            ["simulate", "collisions", "-p", "ball=3"],
            "unknown parameter of world 'collisions' 'ball'; did you mean 'balls'",
        ),
        (["simulate", "collisions", "-p", "balls"], "--param must be name=value, got 'balls'"),
        (["simulate", "collisions", "-p", "balls=2", "-p", "balls=3"], "--param balls is given twice"),
        (["simulate", "collisions", "-p", "radius=NaN"], "NaN is not a finite number"),
        (["simulate", "collisions", "-p", "radius=-1"], "radius"),
    ],
)
def test_simulate_refuses(tmp_path, words, sentence):
    assert sentence in refused(*words, "-o", tmp_path / "balls.zarr")
    assert not (tmp_path / "balls.zarr").exists()


def test_numbers_out_of_range_are_usage_errors(tmp_path):
    assert run("simulate", "collisions", "-n", "0", "-o", tmp_path / "a.zarr").exit_code == 2
    assert run("generate", tmp_path, "--steps", "-1", "-o", tmp_path / "a.zarr").exit_code == 2


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--path", "liner"], "unknown path 'liner'; did you mean 'linear'"),
        (["--path", "bridge"], "origin is missing: Bridge begins at a condition"),
        (["--model", "mpl"], "unknown model 'mpl'; did you mean 'mlp'?"),
        (["--model", "mlp", "--size", "widht=8"], "'widht'; did you mean 'width'?"),
        (["--labels"], "--labels needs labels"),
        (["--augment"], "--augment needs a world with symmetries"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--resume"], "holds no run to go on with"),
        (["--rate", "-1"], "rate"),
        (["--ema", "1.5"], "ema"),
        (["--predicts", "nois"], "nois"),
    ],
)
def test_learn_refuses(tmp_path, words, sentence):
    data = save(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)))
    assert sentence in refused("learn", data, "-o", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


# Data


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"x": np.zeros((0, 3))}, "is empty: shape (0, 3)"),
        ({"x": np.array([[0.0, 1], [2, np.nan]])}, "is NaN or infinite in row 1"),
        ({"x": np.array([[0.0, 1], [np.inf, 2]])}, "is NaN or infinite in row 1"),
        ({"x": np.array([["a", "b"]])}, "not numbers"),
        ({"x": np.array([{}], dtype=object)}, "pickled objects, which are never read"),
        ({"x": np.ones((4, 3))}, "must vary"),
        ({"x": np.eye(4), "y": np.eye(3)}, "rows"),
        ({"x": np.eye(4), "y": np.ones((4, 2))}, "one shape"),
        ({"x": np.zeros((4, 3, 2)), "ts": np.array([0.0, 2, 1])}, "ts must increase, got ts[2]=1.0 after ts[1]=2.0"),
        ({"x": np.zeros((4, 3, 2)), "ts": np.arange(5.0)}, "5 frames"),
        ({"x": np.eye(4), "labels": np.array([0.5, 1, 2, 3])}, "labels must be (N,) integers"),
        ({"x": np.eye(4), "labels": np.array([-1, 1, 2, 3])}, "labels must start at 0"),
    ],
)
def test_learn_refuses_data(tmp_path, arrays, sentence):
    data = save(tmp_path / "data.npz", **arrays)
    assert sentence in refused("learn", data, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_learn_refuses_files_that_it_cannot_read(tmp_path):
    assert "nothing at" in refused("learn", tmp_path / "no.npz", "-o", tmp_path / "run")
    (tmp_path / "data.csv").write_text("1,2")
    assert "known: .zarr, .npz" in refused("learn", tmp_path / "data.csv", "-o", tmp_path / "run")
    whole = save(tmp_path / "whole.npz", x=np.eye(4)).read_bytes()
    for content in (whole[: len(whole) // 2], b"PK, but not a zip"):
        (tmp_path / "data.npz").write_bytes(content)
        assert "cut short" in refused("learn", tmp_path / "data.npz", "-o", tmp_path / "run", code=3)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "data.h5").write_bytes(b"")
    line = refused("learn", tmp_path / "data.h5", "-o", tmp_path / "run", code=3)
    assert "h5py is not installed; pip install 'kinema[hdf5]'" in line


# Where output goes


@pytest.mark.parametrize("name", ["balls", "balls.txt", "balls.zarr.gz"])
def test_an_unknown_ending_is_refused(tmp_path, name):
    assert "--out must end in .zarr or .npz" in refused("simulate", "collisions", "-o", tmp_path / name)


def test_nothing_is_replaced_unasked(tmp_path):
    (tmp_path / "balls.zarr").mkdir()
    (tmp_path / "balls.npz").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    data = save(tmp_path / "data.npz", x=np.eye(4))
    for words in (
        ["simulate", "collisions", "-o", tmp_path / "balls.zarr"],
        ["generate", tmp_path, "-o", tmp_path / "balls.npz"],
        ["steer", tmp_path, "-o", tmp_path / "balls.npz"],
        ["learn", data, "-o", tmp_path / "run"],
    ):
        assert "exists; --overwrite replaces it" in refused(*words)
    assert "holds 'thesis.tex', which Kinema did not write" in refused(
        "learn", data, "-o", tmp_path / "run", "--overwrite"
    )
    assert "is a file; --out must be a folder" in refused("learn", data, "-o", tmp_path / "balls.npz", "--overwrite")
    assert (tmp_path / "balls.npz").read_text() == "mine"
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_parent_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("simulate", "collisions", "-o", tmp_path / "file" / "balls.zarr")
    assert f"folder {tmp_path / 'file'} cannot be made" in line


@pytest.mark.parametrize(
    "number, reason", [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, number, reason):
    from kinema.cli import files

    def full(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "balls.npz"))

    monkeypatch.setattr(files, "atomic_file", full)
    line = refused("simulate", "uniform_motion", "-n", "1", "-p", "frames=2", "-o", tmp_path / "balls.npz", code=3)
    assert line.lower() == f"{reason}: {tmp_path / 'balls.npz'}".lower()


# Errors in general


def test_exit_codes():
    from kinema.errors import BudgetExhausted, StoreCorrupt

    for error, code in [
        (InputError("x"), 2),
        (StoreCorrupt("x"), 3),
        (BudgetExhausted("x"), 3),
        (OSError(errno.ENOSPC, "full"), 3),
        (MemoryError(), 3),
        (KeyboardInterrupt(), 130),
    ]:
        with pytest.raises(shell.typer.Exit) as raised, shell.one_line_errors():
            raise error
        assert raised.value.exit_code == code
    with pytest.raises(ZeroDivisionError), shell.one_line_errors():
        raise ZeroDivisionError("a bug of ours is not hidden")


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for words in (["--debug", "report", tmp_path], ["report", tmp_path, "--debug"]):
        result = run(*words)
        assert isinstance(result.exception, InputError) and "neither a run nor evidence" in str(result.exception)


def test_brackets_in_messages_are_not_markup(tmp_path):
    assert "[red]" in refused("report", tmp_path / "[red]")


def test_values_of_parameters():
    pairs = ["a=1", "b=.5", "c=1e-3", "d=1,2.5", "e=fixed", "f=true", "g=[1, [2]]", "h=null", "i=", "j-k=x=y"]
    assert shell.parameters(pairs) == {
        **{"a": 1, "b": 0.5, "c": 1e-3, "d": [1, 2.5], "e": "fixed", "f": True, "g": [1, [2]], "h": None},
        **{"i": "", "j_k": "x=y"},
    }
    assert isinstance(shell.parameters(["a=1"])["a"], int)


# Verify, study, report, demo, bench


def test_verify_refuses(tmp_path):
    data = save(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)))
    assert "nothing to verify by" in refused("verify", data)
    assert "no times" in refused("verify", data, "--world", "collisions")
    assert "did you mean 'collisions'" in refused("verify", data, "--world", "colisions")
    assert "--param balls needs a --world" in refused("verify", data, "-p", "balls=2")
    other = save(tmp_path / "other.npz", x=np.random.default_rng(0).normal(size=(8, 5)))
    assert "(8, 4)" in refused("verify", data, "--against", other)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("mine")
    assert "exists; --overwrite" in refused("verify", data, "-o", tmp_path / "report")


def test_study_refuses(tmp_path):
    assert "name studies, or give --all" in refused("study")
    assert "unknown preset 'quik'; did you mean 'quick'" in refused("study", "--all", "--preset", "quik")
    assert "unknown study 'nothing'" in refused("study", "nothing", "-o", tmp_path)


def test_demo_refuses_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "exists; --overwrite" in refused("demo", "-o", tmp_path)


def test_steer_refuses(tmp_path):
    assert "--noise says how noisy --observed is" in refused(
        "steer", tmp_path, "--noise", "x=1", "-o", tmp_path / "a.zarr"
    )
    words = ["steer", tmp_path, "--observed", "a.npz", "--method", "best-of", "-o", tmp_path / "a.zarr"]
    assert "give one of them" in refused(*words)
    assert "is not a run folder" in refused("steer", tmp_path, "-o", tmp_path / "a.zarr")
    assert "is not a run folder" in refused("generate", tmp_path, "-o", tmp_path / "a.zarr")


def test_progress_is_silent_where_nobody_watches(capsys):
    with shell.bar("work", 3) as progress:
        progress(3)
    assert capsys.readouterr() == ("", "")
