import json

import ml_dtypes
import numpy as np
import pytest

from kinema.errors import InputError, StoreCorrupt
from kinema.learn import History, ProbeRecord
from kinema.learn.history import Recorder
from kinema.motion.weights import load_arrays, save_weights


def recorder():
    record = Recorder()
    record.extend({"loss": np.float32([0.1, 2.0]), "parts": np.arange(4).reshape(2, 2)})
    record.probe("norm", 2, {"a": 1.5, "b": np.ones(3)})
    record.extend({"loss": np.float32([0.3]), "parts": np.array([[8, 9]])})
    record.probe("norm", 3, {"a": 2.5, "b": np.zeros(3)})
    record.probe("bare", 3, np.float32(7))
    return record


def equal(a: History, b: History):
    assert list(a.metrics) == list(b.metrics) and list(a.probes) == list(b.probes)
    assert all(np.array_equal(a.metrics[n], b.metrics[n]) for n in a.metrics)
    for name, probe in a.probes.items():
        assert np.array_equal(probe.steps, b.probes[name].steps)
        assert all(np.array_equal(v, b.probes[name].values[n]) for n, v in probe.values.items())


def test_chunks_and_probes_are_joined():
    history = recorder().history()
    assert history.loss.tolist() == np.float32([0.1, 2.0, 0.3]).tolist() and len(history) == 3
    assert history.metrics["parts"].tolist() == [[0, 1], [2, 3], [8, 9]]
    assert history.probes["norm"].steps.tolist() == [2, 3]
    assert history.probes["norm"].values["b"].shape == (2, 3)
    assert history.probes["bare"].values["."].tolist() == [7]


def test_json_reads_back_the_same_single_precision(tmp_path):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    History({"loss": values, "n": np.arange(3), "half": values[:5].astype(ml_dtypes.bfloat16)}).save(
        tmp_path / "h.json"
    )
    loaded = History.load(tmp_path / "h.json")
    assert np.array_equal(loaded.loss.astype(np.float32), values) and loaded.metrics["n"].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "h.json").read_text())["metrics"]["loss"][0] == float(str(values[0]))


def test_probes_in_json(tmp_path):
    recorder().history().save(tmp_path / "h.json")
    loaded = History.load(tmp_path / "h.json")
    assert loaded.probes["norm"].values["a"].tolist() == [1.5, 2.5] and loaded.probes["bare"].steps.tolist() == [3]


def test_a_value_that_is_not_finite_is_null_and_read_as_nan(tmp_path):
    History({"loss": np.float32([1, np.nan, np.inf])}).save(tmp_path / "h.json")
    assert "null" in (tmp_path / "h.json").read_text()
    assert np.isnan(History.load(tmp_path / "h.json").loss).tolist() == [False, True, True]


def test_a_recorder_goes_on_from_its_arrays(tmp_path):
    save_weights(tmp_path / "h", recorder().arrays())
    resumed = Recorder()
    resumed.restore(load_arrays(tmp_path / "h"))
    equal(resumed.history(), recorder().history())
    straight = recorder()
    for record in (resumed, straight):
        record.extend({"loss": np.float32([5]), "parts": np.array([[1, 1]])})
        record.probe("norm", 4, {"a": 0.0, "b": np.ones(3)})
    equal(resumed.history(), straight.history())


def test_no_history_yet():
    assert len(Recorder().history()) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"metrics": 3}', '{"metrics": {}, "probes": {"a": 1}}'])
def test_what_is_not_a_history_is_refused(tmp_path, text):
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(StoreCorrupt, match="not a history"):
        History.load(tmp_path / "h.json")
    with pytest.raises(InputError, match="no history"):
        History.load(tmp_path / "nothing.json")


def test_a_probe_record_is_plain_data():
    assert ProbeRecord(np.arange(1), {"a": np.ones(1)}).values["a"] == 1
