import json
import subprocess
import sys

import numpy as np
import pytest

from kinema import studies
from kinema.errors import InputError
from kinema.studies import Evidence, Metric, study
from kinema.studies.study import _STUDIES, _read

SOURCE = '''"""A study."""
raise RuntimeError("a listing must not run this")

@study(
    "made-up", "Nobody, 2020, arXiv 2001.00001",
    "Two words, " "in two strings.",
    stage="generate", seeds=5,
)
def run(preset, seed):
    ...
'''


@pytest.fixture
def registry():
    """Studies registered in a test go when it ends."""
    before = dict(_STUDIES)
    yield
    _STUDIES.clear()
    _STUDIES.update(before)


def made(values, **options):
    return Evidence([Metric("error", values, **({"target": 1.0} | options))])


def test_seeds_together_or_one_by_one_give_the_same(registry):
    @study("all-seeds", "paper", "claim")
    def together(preset, seeds):
        return Evidence([Metric("error", [0.1 * s for s in seeds], 1.0, baseline=[1.0 * s for s in seeds])])

    @study("one-seed", "paper", "claim")
    def single(preset, seed):
        return Evidence([Metric("error", 0.1 * seed, 1.0, baseline=1.0 * seed)], settings={"seed": seed})

    one, other = studies.run("all-seeds", "quick", seeds=(2, 5)), studies.run("one-seed", "quick", seeds=(2, 5))
    assert one.metrics == other.metrics
    assert one.metrics[0].values == (0.2, 0.5) and one.metrics[0].baseline == (2.0, 5.0)
    assert other.settings == {"seed": 2}


def test_run_says_where_numbers_come_from(registry):
    @study("said", "paper", "claim", seeds=2)
    def run(preset, seeds):
        return made([0.5] * len(seeds))

    evidence = run.run()
    assert (evidence.slug, evidence.preset, evidence.seeds) == ("said", "quick", (0, 1))
    assert {"python", "kinema", "jax", "numpy"} <= set(evidence.versions)
    assert "CPU" in evidence.device and evidence.date.count("-") == 2 and evidence.seconds >= 0
    assert run.run("smoke").seeds == (0,)


@pytest.mark.parametrize(
    ("metrics", "verdict", "why"),
    [
        ([], "not run", "Nothing has been measured yet."),
        ([Metric("a", 1.0)], "not run", "No metric has a target."),
        ([Metric("a", 0.9, 1.0)], "reproduced", "The target is met."),
        ([Metric("a", 1.0, 1.0), Metric("b", 2.0, 2.0, ">=")], "reproduced", "All 2 targets are met."),
        ([Metric("a", [0.5, 1.7], 1.0), Metric("b", 3.0, 2.0, ">=")], "falls short", "a is 1.1, target ≤ 1."),
        ([Metric("a", 0.9, 1.0), Metric("b", 1.0, 2.0, ">=", unit="x")], "falls short", "b is 1 x, target ≥ 2."),
        ([Metric("a", float("nan"), 1.0)], "falls short", "a is nan, target ≤ 1. 0 of 1 targets are met."),
        ([Metric("a", float("-inf"), 1.0)], "falls short", "a is -inf"),
        ([Metric("a", 0.9, 1.0), Metric("shown only", 99.0)], "reproduced", "The target is met."),
    ],
)
def test_the_verdict_is_decided_by_the_targets(metrics, verdict, why):
    evidence = Evidence(metrics)
    assert evidence.verdict == verdict and evidence.why.startswith(why)


def test_metrics_take_any_numbers():
    import jax.numpy as jnp

    for values in (0.5, np.float32(0.5), jnp.array(0.5), [0.5], np.array([0.5]), jnp.array([0.5])):
        assert Metric("a", values).values == (0.5,)
    metric = Metric("a", [1, 2, 3], 2.5, against="Euler", unit="s")
    assert metric.measured.mean == 2 and metric.measured.spread == 1 and metric.shown() == "2.0 ± 1.0 s"


def test_catalog_reads_sources_without_running_them(tmp_path):
    file = tmp_path / "made_up.py"
    file.write_text(SOURCE)
    (about,) = _read(file)
    assert (about.slug, about.title, about.stage) == ("made-up", "Made up", "generate")
    assert about.claim == "Two words, in two strings." and about.module == "kinema.studies.made_up"
    file.write_text(SOURCE.replace('"made-up"', "NAME"))
    with pytest.raises(InputError, match="must be plain strings"):
        _read(file)


def test_listing_needs_neither_jax_nor_matplotlib():
    code = "import sys; from kinema import studies; studies.catalog(); print({'jax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_slugs_suggest_a_known_one(registry):
    study("physical-law", "paper", "claim")(lambda preset, seed: made(0.5))
    assert "physical-law" in studies.catalog()
    with pytest.raises(InputError, match="did you mean 'physical-law'"):
        studies.get("phisical-law")


def test_bad_studies_are_refused(registry):
    with pytest.raises(InputError, match=r"must take \(preset, seeds\)"):
        study("x", "p", "c")(lambda preset: made(0.5))
    one = study("x", "p", "c")(lambda preset, seed: made(0.5))
    with pytest.raises(InputError, match="preset must be one of smoke, quick, full, got 'fast'"):
        one.run("fast")
    with pytest.raises(InputError, match="seeds is empty"):
        one.run(seeds=())
    with pytest.raises(InputError, match="no metric with a target"):
        study("y", "p", "c")(lambda preset, seed: made(0.5, target=None)).run()
    with pytest.raises(InputError, match="same metrics in the same order"):
        study("z", "p", "c")(lambda preset, seed: Evidence([Metric(f"error {seed}", 0.5, 1.0)])).run()

    def stranger(preset, seed):
        return made(0.5)

    stranger.__module__ = "elsewhere"
    with pytest.raises(InputError, match="'x' is registered already"):
        study("x", "p", "c")(stranger)


def test_bad_metrics_are_refused():
    with pytest.raises(InputError, match="no values"):
        Metric("a", [])
    with pytest.raises(InputError, match="got '<'"):
        Metric("a", 1.0, 1.0, "<")
    with pytest.raises(InputError, match="target must be finite"):
        Metric("a", 1.0, float("nan"))
    with pytest.raises(InputError, match="names must differ, got a, a"):
        Evidence([Metric("a", 1.0), Metric("a", 2.0)])


def test_evidence_is_plain_json():
    evidence = Evidence(
        [Metric("a", [float("nan"), 1.0], 2.0)], settings={"sizes": (1, np.int64(2)), "f": np.float32(0.5)}
    )
    data = json.loads(json.dumps(evidence.to_json(), allow_nan=False))
    assert data["verdict"] == "falls short" and data["settings"] == {"sizes": [1, 2], "f": 0.5}
    back = Evidence.from_json(data)
    assert np.isnan(back.metrics[0].values[0]) and back.verdict == "falls short"
    with pytest.raises(InputError, match=r"settings\.net must be numbers"):
        Evidence(settings={"net": object()}).to_json()
