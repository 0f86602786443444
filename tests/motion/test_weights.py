import doctest
import errno
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import ml_dtypes
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from kinema.errors import InputError, StoreCorrupt
from kinema.motion import trees, weights
from kinema.motion.weights import load_arrays, load_weights, read_meta, read_specs, save_weights

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "bfloat16", "complex64"]
RARE = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4"]
WIDE = ["int64", "uint64", "float64", "complex128"]


def test_examples():
    assert doctest.testmod(weights).failed == 0


def same_bits(x, y):
    x, y = (np.asarray(jr.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a) for a in (x, y))
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", DTYPES + RARE + WIDE)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    tree = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "none": np.zeros((0, 3), dtype),
        "one": np.ones((), dtype),
    }
    tree["turned"] = tree["matrix"].T  # not in C order
    save_weights(tmp_path / "w", tree)
    loaded = load_weights(tmp_path / "w", jax.tree.map(np.zeros_like, tree))
    assert all(same_bits(loaded[k], tree[k]) and isinstance(loaded[k], np.ndarray) for k in tree)
    assert all(same_bits(x, tree[k]) for k, x in load_arrays(tmp_path / "w").items())


def test_nan_payloads_and_negative_zero_survive(tmp_path):
    x = np.array([0x7FC01234, 0x80000000, 0x7F800000], np.uint32).view(np.float32)
    save_weights(tmp_path / "w", x)
    assert same_bits(load_weights(tmp_path / "w", x), x)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys(tmp_path, impl):
    tree = {"one": jr.key(3, impl=impl), "many": jr.split(jr.key(4, impl=impl), (2, 3))}
    save_weights(tmp_path / "w", tree)
    for like in (tree, jax.eval_shape(lambda: tree)):
        loaded = load_weights(tmp_path / "w", like)
        assert all(same_bits(loaded[k], tree[k]) and jr.key_impl(loaded[k]) == impl for k in tree)
    assert jr.key_impl(load_arrays(tmp_path / "w")["many"]) == impl
    other = {name: jr.key(0, impl="unsafe_rbg") for name in tree}
    with pytest.raises(InputError, match=f"many is key:{impl} \\(2, 3\\) in the file, key:unsafe_rbg"):
        load_weights(tmp_path / "w", other)


def test_a_model_keeps_its_kinds_of_arrays(tmp_path, key):
    model = (eqx.nn.MLP(2, 1, 4, 1, key=key), np.arange(3, dtype=np.int32), jnp.ones(2, jnp.bfloat16), jax.nn.relu)
    save_weights(tmp_path / "w", model)
    skeleton = eqx.filter_eval_shape(lambda: (eqx.nn.MLP(2, 1, 4, 1, key=key), *model[1:]))
    for like in (jax.tree.map(lambda x: 0 * x if eqx.is_array(x) else x, model), skeleton):
        loaded = load_weights(tmp_path / "w", like)
        assert all(same_bits(a, b) for a, b in zip(trees.leaf_names(loaded).values(), trees.leaf_names(model).values()))
        assert jnp.array_equal(loaded[0](jnp.ones(2)), model[0](jnp.ones(2)))
    assert isinstance(load_weights(tmp_path / "w", model)[1], np.ndarray)


def test_other_readers_read_our_files(tmp_path):
    tree = {"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.ones(3, np.int8), "d": jnp.full(3, 1.5, jnp.bfloat16)}
    save_weights(tmp_path / "w", tree, {"step": 3})
    loaded = safetensors.numpy.load_file(tmp_path / "w")
    assert same_bits(loaded["a/b"], tree["a"]["b"]) and same_bits(loaded["c"], tree["c"])
    assert same_bits(safetensors.flax.load_file(tmp_path / "w")["d"], tree["d"])


def test_files_of_other_writers_load(tmp_path):
    tree = {"a/b": jnp.arange(6.0).reshape(2, 3), "c": jnp.full(3, 1.5, jnp.bfloat16)}
    safetensors.flax.save_file(tree, tmp_path / "w", metadata={"made": "elsewhere"})
    loaded = load_weights(tmp_path / "w", {"a": {"b": jnp.zeros((2, 3))}, "c": tree["c"]})
    assert same_bits(loaded["a"]["b"], tree["a/b"]) and same_bits(loaded["c"], tree["c"])
    assert read_meta(tmp_path / "w") == {}
    with pytest.raises(InputError, match=r"c is bfloat16 \(3,\) in the file"):
        load_weights(tmp_path / "w", {"a": {"b": jnp.zeros((2, 3))}, "c": jnp.zeros(3)})


def test_meta_and_specs(tmp_path):
    meta = {"builder": "mlp", "sizes": [1, 2], "nested": {"α": None, "x": 0.1}}
    save_weights(tmp_path / "w", {"a": np.ones((2, 3), np.float32)}, meta)
    assert read_meta(tmp_path / "w") == meta
    spec = read_specs(tmp_path / "w")["a"]
    assert spec["dtype"] == "float32" and spec["shape"] == [2, 3]
    assert spec["sha256"] == weights.digests({"a": np.ones((2, 3), np.float32)})["a"]
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(InputError, match="meta must be JSON"):
            save_weights(tmp_path / "w", {}, bad)
    assert read_meta(tmp_path / "w") == meta


def test_an_empty_tree(tmp_path):
    save_weights(tmp_path / "w", {"f": jax.nn.relu})
    assert load_weights(tmp_path / "w", {"f": jax.nn.relu}) == {"f": jax.nn.relu}


def test_part_of_a_file(tmp_path):
    tree = {"params": {"w": np.ones(2)}, "ema": {"w": np.zeros(2)}, "emax": np.ones(1), "single": np.full(3, 7.0)}
    save_weights(tmp_path / "w", tree)
    assert load_weights(tmp_path / "w", {"w": np.ones(2)}, prefix="ema")["w"].tolist() == [0, 0]
    assert load_weights(tmp_path / "w", np.ones(3), prefix="single").tolist() == [7, 7, 7]
    with pytest.raises(InputError, match="v is absent in the file"):
        load_weights(tmp_path / "w", {"v": np.ones(2)}, prefix="ema")


def test_another_model_is_refused_by_its_first_leaves(tmp_path, key):
    save_weights(tmp_path / "w", eqx.nn.MLP(2, 1, 4, 3, key=key))
    with pytest.raises(InputError) as error:
        load_weights(tmp_path / "w", eqx.nn.MLP(2, 1, 8, 3, key=key))
    assert "layers/0/weight is float32 (4, 2) in the file, float32 (8, 2) here" in str(error.value)
    assert "and 4 more" in str(error.value)
    with pytest.raises(InputError, match=r"layers/0/bias is float32 \(4,\) in the file, absent here"):
        load_weights(tmp_path / "w", eqx.nn.MLP(2, 1, 4, 3, use_bias=False, key=key))
    half = jax.tree.map(lambda x: x.astype(jnp.float16) if eqx.is_array(x) else x, eqx.nn.MLP(2, 1, 4, 3, key=key))
    with pytest.raises(InputError, match=r"float32 \(4, 2\) in the file, float16 \(4, 2\) here"):
        load_weights(tmp_path / "w", half)


def test_numbers_in_the_tree_belong_to_the_model(tmp_path):
    save_weights(tmp_path / "w", {"w": np.ones(1), "rate": 1.0})
    assert load_weights(tmp_path / "w", {"w": np.zeros(1), "rate": 1.0})["rate"] == 1.0
    with pytest.raises(InputError, match=r"rate is 1\.0 in the file, 2\.0 here"):
        load_weights(tmp_path / "w", {"w": np.zeros(1), "rate": 2.0})


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no weights at"):
        load_weights(tmp_path / "nothing", {})
    with pytest.raises(InputError, match="no weights at"):
        load_weights(tmp_path, {})


def small(tmp_path):
    tree = {"first": np.arange(3, dtype=np.float32), "second": np.ones((2, 2), np.int16), "rate": 0.5}
    save_weights(tmp_path / "w", tree, {"note": "x"})
    return tree, (tmp_path / "w").read_bytes()


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    tree, whole = small(tmp_path)
    noticed = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "w").write_bytes(damaged)
        try:
            loaded = load_weights(tmp_path / "w", tree)
        except StoreCorrupt:
            noticed += 1
        else:  # spaces of the header, or our own record under another name
            assert all(same_bits(loaded[k], tree[k]) for k in ("first", "second"))
    assert noticed > 0.95 * len(whole)


def test_every_truncation_is_noticed(tmp_path):
    tree, whole = small(tmp_path)
    for length in range(len(whole)):
        (tmp_path / "w").write_bytes(whole[:length])
        with pytest.raises(StoreCorrupt, match=r"cut short|damaged"):
            load_weights(tmp_path / "w", tree)
    (tmp_path / "w").write_bytes(whole + b"\0")
    with pytest.raises(StoreCorrupt, match="damaged"):
        load_weights(tmp_path / "w", tree)


def test_the_damaged_tensor_is_named(tmp_path):
    tree, whole = small(tmp_path)
    for place, name in ((len(whole) - 20, "first"), (len(whole) - 3, "second")):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (tmp_path / "w").write_bytes(damaged)
        with pytest.raises(StoreCorrupt, match=f"tensor {name} does not match"):
            load_weights(tmp_path / "w", tree)
    (tmp_path / "w").write_bytes(whole[:-3])
    with pytest.raises(StoreCorrupt, match="cut short: tensor second"):
        load_weights(tmp_path / "w", tree)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"object","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":3}',
        b"[1]",
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(StoreCorrupt, match="header"):
        load_arrays(tmp_path / "w")


def test_a_huge_header_is_not_read(tmp_path):
    (tmp_path / "w").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(StoreCorrupt, match="not a safetensors file"):
        load_arrays(tmp_path / "w")


def test_a_file_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        save_weights(tmp_path / "w", np.full(3, value))
        assert load_weights(tmp_path / "w", np.ones(3)).tolist() == [value] * 3
    assert os.listdir(tmp_path) == ["w"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", np.ones(3))

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path / "w", np.zeros(3))
    monkeypatch.undo()
    assert load_weights(tmp_path / "w", np.ones(3)).tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_files_have_the_usual_permissions(tmp_path):
    save_weights(tmp_path / "w", np.ones(3))
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "plain").stat().st_mode
