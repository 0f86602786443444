"""Studies, evidence, the demo and the benchmarks from the command line, with studies that take no time."""

import importlib
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from kinema.cli import app
from kinema.errors import NotFinite
from kinema.learn import History, ProbeRecord
from kinema.studies import Evidence, Metric, study


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    """Two studies, one of which breaks."""
    module = importlib.import_module("kinema.studies.study")  # the package has a function of that name
    monkeypatch.setattr(module, "_STUDIES", {})

    @study("toy", "Toy 2026", "A toy is small.")
    def toy(preset, seed):
        return Evidence([Metric("size", 0.5 + seed, target=2.0)])

    @study("broken", "Toy 2026", "A toy breaks.")
    def broken(preset, seed):
        raise NotFinite("the loss is not finite at step 7")


def test_study_measures_judges_and_draws(tmp_path):
    result = run("study", "toy", "--seeds", 2, "-o", tmp_path)
    assert "1.0 ± 0.7" in result.stdout and "≤ 2" in result.stdout
    assert "reproduced: The target is met." in result.stderr
    assert "A toy is small." in (tmp_path / "toy.html").read_text()
    kept = json.loads((tmp_path / "toy.json").read_text())
    assert kept["verdict"] == "reproduced" and kept["seeds"] == [0, 1] and kept["preset"] == "quick"


def test_study_as_json(tmp_path):
    (found,) = json.loads(run("study", "toy", "-o", tmp_path, "--json").stdout)
    assert found["verdict"] == "reproduced" and found["page"] == str(tmp_path / "toy.html")


def test_the_smoke_preset_is_not_evidence(tmp_path):
    run("study", "toy", "--preset", "smoke", "-o", tmp_path)
    assert (tmp_path / "toy.html").exists() and not (tmp_path / "toy.json").exists()


def test_one_study_that_fails_does_not_stop_the_others(tmp_path):
    result = run("study", "broken", "toy", "-o", tmp_path, code=3)
    assert "the loss is not finite at step 7" in result.stderr and "1 of 2 studies did not run: broken" in result.stderr
    assert (tmp_path / "toy.json").exists()
    run("study", "broken", "-o", tmp_path, code=3)


def test_report_draws_what_was_kept(tmp_path):
    run("study", "toy", "-o", tmp_path / "pages", "--keep", tmp_path / "evidence")
    assert run("report", tmp_path / "evidence").stdout.strip() == str(tmp_path / "evidence" / "index.html")
    assert "A toy is small." in (tmp_path / "evidence" / "index.html").read_text()
    assert "neither a run nor evidence" in run("report", tmp_path / "pages", code=2).stderr


def test_report_draws_a_run(tmp_path):
    seen = {"held out": ProbeRecord(np.array([0, 50, 100]), {".": np.array([3.0, 1.5, 1.2])})}
    (tmp_path / "run").mkdir()
    History({"loss": np.linspace(3, 1, 100), "hits": np.full(100, np.nan)}, seen).save(tmp_path / "run/history.json")
    assert run("report", tmp_path / "run", "-o", tmp_path / "page.html").stdout.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What probes saw" in page and "100 steps, last loss 1.495" in page and "hits" not in page


def test_list_shows_verdicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("study", "toy", "--keep", "evidence")
    found = {one["slug"]: one["verdict"] for one in json.loads(run("list", "studies", "--json").stdout)["studies"]}
    assert found["toy"] == "reproduced" and found["broken"] == "not run"


def test_demo_is_called_with_what_was_asked(tmp_path, monkeypatch):
    from kinema.studies import collisions

    calls = []
    monkeypatch.setattr(collisions, "demo", lambda folder, **options: calls.append((folder, options)))
    run("demo", "-o", tmp_path / "out", "--seed", 3, "--preset", "smoke")
    assert calls == [(tmp_path / "out", {"seed": 3, "overwrite": False, "preset": "smoke"})]
    assert "did you mean 'smoke'" in run("demo", "-o", tmp_path / "out", "--preset", "smok", code=2).stderr


def test_bench_runs_the_benchmarks_of_the_checkout(tmp_path, monkeypatch):
    from kinema.cli import names

    monkeypatch.setattr(names, "KINEMA", tmp_path / "kinema")
    assert "none in" in run("bench", code=2).stderr
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text("")
    calls = []

    def fake(words, **options):
        calls.append((words[1:], options))
        return SimpleNamespace(returncode=4)

    monkeypatch.setattr(subprocess, "run", fake)
    run("bench", "sampler", "--json", code=4)
    assert calls == [(["-m", "benchmarks", "sampler", "--json"], {"cwd": tmp_path, "check": False})]
