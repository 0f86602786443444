"""Rows dealt to clients: all of them, once each, and in the shares that are asked for."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.learn.federated import by_key, dirichlet, divide, shards, stacked

LABELS = np.arange(600) % 10


def shares(parts):
    """(clients, labels)"""
    counts = np.array([np.bincount(LABELS[part], minlength=10) for part in parts])
    return counts / counts.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "parts",
    [dirichlet(LABELS, 8, 0.3, key=jr.key(0)), shards(LABELS, 7, 3, key=jr.key(0)), by_key(LABELS)],
    ids=["dirichlet", "shards", "by key"],
)
def test_every_row_is_dealt_once(parts):
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    assert min(map(len, parts)) >= 1


def test_alpha_sets_how_alike_clients_are():
    few, many = (shares(dirichlet(LABELS, 6, alpha, key=jr.key(1))) for alpha in (0.05, 1000.0))
    assert np.abs(many - 0.1).max() < 0.03
    assert few.max(1).mean() > 0.3


def test_the_same_key_deals_the_same():
    one, two = (dirichlet(LABELS, 5, 0.5, key=jr.key(2)) for _ in range(2))
    other = dirichlet(LABELS, 5, 0.5, key=jr.key(3))
    assert all(np.array_equal(a, b) for a, b in zip(one, two))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other))


def test_shards_hold_few_labels():
    assert max(len(np.unique(LABELS[part])) for part in shards(LABELS, 10, 2, key=jr.key(0))) <= 3


def test_batches_go_round_the_rows_that_count():
    rows = np.arange(10.0)
    clients = divide({"x": rows}, [np.arange(7), np.array([8, 9])])
    small = jax.tree.map(lambda x: x[1], clients)
    order = small.order(jr.key(0))
    seen = [small.batch(order, jnp.array(step), 3)["x"].tolist() for step in range(2)]
    assert sorted(seen[0] + seen[1]) == [8.0] * 3 + [9.0] * 3
    large = jax.tree.map(lambda x: x[0], clients)
    order = large.order(jr.key(0))
    seen = np.concatenate([large.batch(order, jnp.array(step), 3)["x"] for step in range(7)])
    assert np.array_equal(np.bincount(seen.astype(int)), [3] * 7)


def test_the_order_does_not_depend_on_how_far_data_are_filled_up():
    key, alone = jr.key(5), stacked(np.arange(4.0)[None])
    filled = stacked(np.zeros((1, 9)), np.array([4]))
    one, two = (jax.tree.map(lambda x: x[0], clients).order(key) for clients in (alone, filled))
    assert one.tolist() == two[:4].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: divide(np.ones(5), [np.array([0]), np.array([], int)]), "client 1 has no data"),
        (lambda: divide(np.ones(5), []), "parts is empty"),
        (lambda: divide(np.ones(5), [np.array([5])]), r"part 0 names rows outside 0\.\.4"),
        (lambda: divide(np.array([1.0, np.nan]), [np.array([0])]), "NaN"),
        (lambda: stacked({"x": np.ones((3, 4)), "y": np.ones((2, 4))}), "x has 3, y 2"),
        (lambda: stacked({"x": np.ones((3, 4)), "y": np.ones((3, 5))}), "rows of the clients"),
        (lambda: stacked(np.ones((3, 4)), np.array([4, 0, 1])), "client 1 has no data"),
        (lambda: stacked(np.ones((3, 4)), np.array([4, 5, 1])), "client 1 has size 5"),
        (lambda: stacked(np.ones((3, 4)), np.array([4, 4])), "sizes must be 3 whole numbers"),
        (lambda: dirichlet(LABELS, 601, 1.0, key=jr.key(0)), r"clients must be in 1\.\.600"),
        (lambda: dirichlet(LABELS, 6, 0.0, key=jr.key(0)), "alpha must be positive"),
        (lambda: dirichlet(LABELS, 6, 1.0, key=jr.key(0), least=101), r"least must be in 1\.\.100"),
        (lambda: dirichlet(LABELS, 100, 0.001, key=jr.key(0), least=5), "in 100 draws some client"),
        (lambda: shards(LABELS, 10, 61, key=jr.key(0)), r"per_client must be in 1\.\.60"),
        (lambda: by_key(np.ones(0)), "labels must be one for each row"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
