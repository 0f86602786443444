import json
import os

import numpy as np
import pytest
from matplotlib.figure import Figure

from kinema.errors import InputError, StoreCorrupt
from kinema.report import Picture, animate
from kinema.report.charts import house
from kinema.studies import Evidence, Metric, load_evidence, save_evidence
from kinema.tables import Spread, Table


def line(name="error"):
    with house() as (figure, axes):
        axes.plot([3, 1, 2])
    return Picture(name, figure, alt="a line", caption="Error <falls>.")


def field(name, roughness=0.02, size=500):
    """A smooth picture with some noise: large as SVG, smaller as PNG."""
    wave = np.sin(np.arange(size) / 40)
    figure = Figure(figsize=(4, 4))
    values = wave[:, None] * wave + roughness * np.random.default_rng(0).normal(size=(size, size))
    figure.subplots().imshow(values, interpolation="nearest", cmap="gray")
    return Picture(name, figure, alt="a field")


def evidence(**options):
    given = {
        "metrics": [Metric("error", [0.1, 0.2], 0.3, baseline=[0.4, 0.5], unit="m", against="Euler")],
        "tables": [Table("t", ("a", "b"), [("x", Spread(1.0, 0.1))])],
        "figures": [line()],
        "animations": [animate({"true": np.zeros((4, 2, 2))}, alt="two balls", name="balls")],
        "settings": {"width": 64},
        "slug": "made-up",
        "preset": "quick",
        "seeds": (0, 1),
        "versions": {"jax": "0.10"},
        "device": "CPU",
        "date": "2025-01-01",
        "commit": "abc",
        "seconds": 1.23,
    }
    return Evidence(**(given | options))


def test_what_is_saved_is_loaded(tmp_path):
    path = save_evidence(evidence(), tmp_path / "evidence")
    names = ["made-up.balls.json", "made-up.error.svg", "made-up.json"]
    assert path.name == "made-up.json" and sorted(os.listdir(path.parent)) == names
    back = load_evidence("made-up", path.parent)
    assert back.to_json() == evidence().to_json()
    assert back.verdict == json.loads(path.read_text())["verdict"] == "reproduced"
    assert back.figures[0].kind == "svg" and back.figures[0].caption == "Error <falls>."
    assert back.animations == evidence().animations
    assert not load_evidence("made-up", path.parent, pictures=False).figures


def test_nothing_kept_is_not_run(tmp_path):
    assert load_evidence("never", tmp_path).verdict == "not run"


def test_smoke_is_never_kept(tmp_path):
    kept = save_evidence(evidence(), tmp_path).read_bytes()
    with pytest.raises(InputError, match="smoke preset"):
        save_evidence(evidence(preset="smoke", metrics=[Metric("error", 9.0, 0.3)]), tmp_path)
    assert (tmp_path / "made-up.json").read_bytes() == kept


def test_saving_again_replaces_everything_of_that_study_only(tmp_path):
    save_evidence(evidence(slug="other"), tmp_path)
    save_evidence(evidence(), tmp_path)
    save_evidence(evidence(figures=[line("loss")], animations=[]), tmp_path)
    mine = {name for name in os.listdir(tmp_path) if name.startswith("made-up")}
    assert mine == {"made-up.json", "made-up.loss.svg"}
    assert load_evidence("other", tmp_path).animations


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    save_evidence(evidence(), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_evidence(evidence(settings={"width": 65}), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_pictures_fit_together_or_are_refused(tmp_path):
    rich = [field("a"), field("b"), line()]
    save_evidence(evidence(figures=rich), tmp_path)
    sizes = {name: (tmp_path / name).stat().st_size for name in os.listdir(tmp_path) if name != "made-up.json"}
    assert sum(sizes.values()) <= 150_000 and {"made-up.error.svg", "made-up.b.png"} < set(sizes)
    large = b"<svg>" + b" " * 90_000 + b"</svg>"
    with pytest.raises(InputError, match="'a' has 90011 bytes, at most"):
        save_evidence(evidence(figures=[Picture(name, large, alt="drawn elsewhere") for name in "ab"]), tmp_path)


@pytest.mark.parametrize("name", ["made-up.error.svg", "made-up.balls.json"])
def test_changed_or_missing_pictures_are_noticed(tmp_path, name):
    save_evidence(evidence(), tmp_path)
    (tmp_path / name).write_bytes(b"<svg/>")
    with pytest.raises(StoreCorrupt, match=f"{name} is not the picture that was saved"):
        load_evidence("made-up", tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StoreCorrupt, match=f"{name} is missing"):
        load_evidence("made-up", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 7'),
        lambda text: text.replace('"direction": "<="', '"direction": "<"'),
        lambda text: text.replace('"slug": "made-up"', '"slug": "other"'),
        lambda text: text.replace("made-up.error.svg", "../../etc/passwd"),
        lambda text: text.replace('"name": "error",\n   "file"', '"name": "../x",\n   "file"'),
    ],
)
def test_damaged_evidence_is_noticed(tmp_path, damage):
    path = save_evidence(evidence(), tmp_path)
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(StoreCorrupt, match=r"made-up"):
        load_evidence("made-up", tmp_path)


@pytest.mark.parametrize("slug", ["", "../up", "A", "a--b", "a.b", "a/b"])
def test_names_stay_inside_the_folder(tmp_path, slug):
    with pytest.raises(InputError, match="slug must be"):
        save_evidence(evidence(slug=slug), tmp_path)
    with pytest.raises(InputError, match="slug must be"):
        load_evidence(slug, tmp_path)
    with pytest.raises(InputError, match="picture must be"):
        save_evidence(evidence(figures=[line("../x")]), tmp_path)
