import operator

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.learn import batch_rows, batches
from kinema.learn.batches import Batches, check_data, take


@pytest.mark.parametrize("rows, batch_size", [(12, 3), (10, 4), (7, 7), (5, 12), (1, 4), (70_000, 4000)])
def test_every_epoch_is_a_permutation(key, rows, batch_size):
    epochs = 4
    steps = -(-epochs * rows // batch_size)
    stream = batch_rows(key, rows, batch_size, 0, steps).ravel()[: epochs * rows].reshape(epochs, rows)
    assert (np.sort(stream, axis=1) == np.arange(rows)).all()
    if rows > 5:
        assert len(np.unique(stream, axis=0)) == epochs


@pytest.mark.parametrize("rows, batch_size", [(10, 4), (5, 12), (70_000, 4000)])
def test_any_step_is_known_without_those_before(key, rows, batch_size):
    whole = batch_rows(key, rows, batch_size, 0, 60)
    for step, steps in ((0, 60), (1, 1), (17, 5), (59, 1)):
        assert np.array_equal(batch_rows(key, rows, batch_size, step, steps), whole[step : step + steps])


def test_the_order_follows_the_key_of_either_kind(key):
    rows = batch_rows(key, 100, 100, 0)
    assert np.array_equal(rows, batch_rows(jr.key_data(key), 100, 100, 0))
    assert not np.array_equal(rows, batch_rows(jr.key(1), 100, 100, 0))


def test_first_rows_are_uniform():
    first = [int(batch_rows(jr.key(seed), 4, 1, 0)[0, 0]) for seed in range(400)]
    assert np.abs(np.bincount(first, minlength=4) - 100).max() < 4 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_rows_reach_the_step_from_host_and_device(key, monkeypatch, limit):
    monkeypatch.setattr(batches, "DEVICE_BYTES", limit)
    data = {"x": np.arange(20.0, dtype=np.float32).reshape(10, 2), "n": (np.arange(10),)}
    feed = Batches(data, 4, key, None)
    assert (feed.table is None) == (limit == 0)
    inputs, rows = feed.inputs(5, 3), batch_rows(key, 10, 4, 5, 3)
    compiled = jax.jit(lambda table, inputs: take(table, inputs, None))
    for step in range(3):
        batch = compiled(feed.table, jax.tree.map(operator.itemgetter(step), inputs))
        assert np.array_equal(batch["x"], data["x"][rows[step]])
        assert np.array_equal(batch["n"][0], rows[step])


def test_random_keys_are_data_too(key):
    data = {"key": jr.split(key, 10), "x": jnp.arange(10)}
    feed = Batches(data, 4, key, None)
    batch = take(feed.table, feed.inputs(0, 1)[0], None)
    assert np.array_equal(jr.key_data(batch["key"]), jr.key_data(data["key"])[batch["x"]])


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_data_that_cannot_be_used_is_named(kind):
    assert check_data({"x": kind(np.ones((3, 2))), "n": kind(np.arange(3))}) == 3
    for data, message in [
        ({}, "no arrays"),
        ({"x": kind(np.ones((0, 2)))}, "empty"),
        ({"x": kind(np.ones(3)), "y": kind(np.ones(4))}, "same number of rows: x has 3, y has 4"),
        ({"x": kind(np.ones(3)), "dt": 0.1}, "leaf dt is a float"),
        ({"x": kind(np.ones(()))}, "leaf x is a single number"),
        (
            {"x": kind(np.ones((9, 2))), "y": kind(np.where(np.arange(9) == 7, np.nan, 1))},
            "y has NaN or infinity in row 7",
        ),
        ({"x": kind(np.full((9, 2), -np.inf))}, "x has NaN or infinity in row 0"),
    ]:
        with pytest.raises(InputError, match=message):
            check_data(data)


def test_nan_is_found_among_host_and_device_leaves():
    good, bad = np.ones(3), np.array([1.0, 1.0, np.nan])
    with pytest.raises(InputError, match="b has NaN or infinity in row 2"):
        check_data({"a": jnp.asarray(good), "b": bad})
    with pytest.raises(InputError, match="a has NaN or infinity in row 2"):
        check_data({"a": jnp.asarray(bad), "b": good})
