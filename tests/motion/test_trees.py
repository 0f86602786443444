import doctest
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.motion import trees


def test_examples():
    assert doctest.testmod(trees).failed == 0


def test_leaf_names_of_an_equinox_module_in_tree_order(key):
    model = eqx.nn.MLP(2, 3, 4, 1, key=key)
    names = trees.leaf_names(model)
    assert list(names) == ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"]
    assert names["layers/1/weight"].shape == (3, 4)


def test_leaf_names_of_dicts_tuples_keys_and_single_arrays(key):
    tree = {"b": (np.ones(2), jnp.zeros(3)), "a": key, "none": None, "text": "x", "number": 3.0}
    assert list(trees.leaf_names(tree)) == ["a", "b/0", "b/1"]
    assert list(trees.leaf_names(jnp.ones(2))) == ["."]
    assert trees.leaf_names({}) == {}


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(InputError, match="'a/b'"):
        trees.leaf_names({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def test_replace_leaves_is_the_inverse_of_leaf_names(key):
    model = eqx.nn.Linear(2, 3, key=key)
    doubled = trees.replace_leaves(model, {name: 2 * x for name, x in trees.leaf_names(model).items()})
    assert jnp.array_equal(doubled.weight, 2 * model.weight)
    assert jnp.array_equal(doubled.bias, 2 * model.bias)
    with pytest.raises(InputError, match=r"'wait'.*weight"):
        trees.replace_leaves(model, {"wait": np.ones(1)})


@pytest.mark.parametrize("prefix", ["ema", "ema/a"])
def test_join_is_the_inverse_of_below(prefix):
    table = trees.leaf_names({"ema": {"a": [np.ones(1), np.ones(2)]}, "emax": np.ones(3)})
    inside = trees.below(table, prefix)
    assert {trees.join(prefix, name): x.shape for name, x in inside.items()} == {"ema/a/0": (1,), "ema/a/1": (2,)}


def test_names_below_a_leaf():
    assert trees.below({"params": 1, "paramsx": 2}, "params") == {".": 1}
    assert trees.join("params", ".") == "params"
    assert trees.join("", "a/0") == "a/0"


def test_norm_dot_and_largest_in_closed_form():
    x = {"a": jnp.array([3.0, 0.0]), "b": (jnp.array(-4.0), "text", jnp.arange(7))}
    y = {"a": jnp.array([1.0, 5.0]), "b": (jnp.array(2.0), "text", jnp.arange(7))}
    assert trees.norm(x) == 5
    assert trees.dot(x, y) == 3 * 1 + -4 * 2
    assert trees.largest(x) == 4
    assert trees.size(x) == 3
    assert trees.norm({}) == 0 and trees.largest({}) == 0


def test_dot_conjugates_its_first_argument():
    x, y = jnp.array([1 + 2j]), jnp.array([3 - 1j])
    assert trees.dot(x, y) == (1 - 2j) * (3 - 1j)
    assert_within_error(trees.norm(x), math.sqrt(5), standard_error=1e-7)


def test_norm_of_half_precision_does_not_overflow_or_stall():
    assert trees.norm(jnp.full(4, 300.0, jnp.float16)) == 600
    assert trees.norm(jnp.ones(10_000, jnp.bfloat16)) == 100


def test_linear_algebra_keeps_dtypes_and_other_leaves(key):
    x = {"w": jnp.array([1.0, 2.0], jnp.bfloat16), "n": jnp.arange(2), "f": jax.nn.relu, "key": key}
    y = {"w": jnp.array([4.0, 8.0]), "n": None, "f": None, "key": None}
    for result, truth in [
        (trees.add(x, y), [5, 10]),
        (trees.subtract(x, y), [-3, -6]),
        (trees.add_scaled(x, jnp.float32(0.5), y), [3, 6]),
        (trees.interpolate(x, y, 0.25), [1.75, 3.5]),
        (trees.scale(x, -2.0), [-2, -4]),
        (trees.zeros_like(x), [0, 0]),
    ]:
        assert result["w"].tolist() == truth and result["w"].dtype == jnp.bfloat16
        assert result["n"] is x["n"] and result["f"] is jax.nn.relu and result["key"] is key


def test_none_stands_for_zero_on_either_side():
    x = {"a": jnp.ones(2), "b": None}
    assert trees.add(x, {"a": None, "b": None})["a"] is x["a"]
    assert trees.dot(x, {"a": None, "b": None}) == 0


def test_normal_like_has_unit_variance_and_independent_leaves(key):
    tree = {"a": jnp.zeros(20_000), "b": jnp.zeros(20_000), "n": jnp.arange(3)}
    drawn = trees.normal_like(key, tree)
    assert_within_error(drawn["a"].var(), 1, standard_error=(2 / 20_000) ** 0.5)
    assert_within_error((drawn["a"] * drawn["b"]).mean(), 0, standard_error=20_000**-0.5)
    assert drawn["n"].tolist() == [0, 1, 2]
    assert jnp.array_equal(drawn["a"], trees.normal_like(key, tree)["a"])
    assert not jnp.array_equal(drawn["a"], trees.normal_like(jr.key(1), tree)["a"])


def test_all_finite_compiles_and_ignores_what_is_not_a_number(key):
    good = {"a": jnp.ones(3), "n": jnp.arange(2), "key": key}
    bad = {**good, "a": jnp.array([1.0, jnp.inf, 0.0])}
    for f in (trees.all_finite, jax.jit(trees.all_finite)):
        assert f(good) and not f(bad)
    assert trees.all_finite({})


def test_first_not_finite_names_leaf_and_row(monkeypatch):
    monkeypatch.setattr(trees, "_BLOCK", 8)  # several blocks
    tree = {"a": np.ones((50, 3)), "b": jnp.ones((50, 2)).at[33, 1].set(jnp.nan), "c": np.full(50, np.inf)}
    assert trees.first_not_finite(tree) == ("b", 33)
    assert trees.first_not_finite({"a": tree["a"], "n": np.arange(3)}) is None
    assert trees.first_not_finite({"s": jnp.array(jnp.nan)}) == ("s", 0)
    assert trees.first_not_finite(np.array([0, 0, np.nan])) == (".", 2)
    assert trees.first_not_finite(np.ones((0, 3))) is None
    assert trees.first_not_finite(jnp.array([1, jnp.inf], jnp.bfloat16)) == (".", 1)


def test_algebra_is_that_of_the_flat_vector(key):
    model = {"a": jr.normal(key, (8, 3)), "b": [jr.normal(key, (8, 3)) ** 2, "text"]}
    other = trees.normal_like(key, model)

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in trees.leaf_names(tree).values()]).astype(np.float64)

    assert_within_error(trees.dot(model, other), flat(model) @ flat(other), standard_error=1e-5)
    assert_within_error(trees.norm(other), np.linalg.norm(flat(other)), standard_error=1e-5)
    assert np.array_equal(flat(trees.subtract(trees.add(other, other), other)), flat(other))
