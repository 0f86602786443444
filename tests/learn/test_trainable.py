import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.learn import Trainable


@pytest.fixture
def model(key):
    return {
        "net": eqx.nn.MLP(2, 1, 3, 1, key=key),
        "count": jnp.arange(2),
        "scale": np.ones(2),
        "key": key,
        "rate": 0.5,
    }


@pytest.mark.parametrize(
    "where, names",
    [
        (None, ["net/layers/0/bias", "net/layers/0/weight", "net/layers/1/bias", "net/layers/1/weight", "scale"]),
        ("net/*/bias", ["net/layers/0/bias", "net/layers/1/bias"]),
        (["scale", "net/layers/0/*"], ["net/layers/0/bias", "net/layers/0/weight", "scale"]),
        (lambda name, leaf: leaf.ndim == 2, ["net/layers/0/weight", "net/layers/1/weight"]),
    ],
)
def test_what_learns_and_what_does_not(model, where, names):
    trainable = Trainable(where)
    assert sorted(trainable.names(model)) == names
    params, static = trainable.split(model)
    assert len(jax.tree.leaves(params)) == len(names)
    back = eqx.combine(params, static)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model)))


def test_a_pattern_that_matches_nothing_suggests_names(model):
    with pytest.raises(InputError, match=r"'net/layers/0/wight'; did you mean 'net/layers/0/weight'"):
        Trainable("net/layers/0/wight").names(model)
    with pytest.raises(InputError, match="unknown trainable leaf 'count'"):
        Trainable(["scale", "count"]).names(model)


def test_nothing_to_learn_is_refused(model):
    with pytest.raises(InputError, match="nothing to learn"):
        Trainable(lambda name, leaf: False).split(model)
    with pytest.raises(InputError, match="nothing to learn"):
        Trainable().split({"n": jnp.arange(3), "f": jax.nn.relu})


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="where must be"):
        Trainable([])
