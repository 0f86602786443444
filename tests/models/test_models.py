"""What holds for every network; the registry that makes them."""

import doctest
import importlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from nets import apply_all, normals, trained

from kinema import models
from kinema.errors import InputError

EXAMPLES = {
    "dit": ((7, 5, 2), {"width": 16, "depth": 1, "heads": 2, "expand": 2}),
    "image_unet": ((7, 5, 2), {"width": 8, "levels": 2, "heads": 2}),
    "mlp": ((3, 2), {"width": 16, "depth": 2}),
    "motion_tokens": ((6, 2, 2, 2), {"width": 16, "depth": 1}),
    "temporal_unet": ((9, 3, 2), {"width": 8, "levels": 2, "heads": 2}),
}
every_model = pytest.mark.parametrize("name", models.ALL_MODELS)


SIGNALS = jnp.array([-12.0, -3.0, 0.3, 12.0])
LABELS = jnp.arange(4)


def make(name, key, **more):
    shape, sizes = EXAMPLES[name]
    return models.make(name, shape=shape, key=key, **{"classes": 3, **sizes, **more})


def rows(name):
    return normals((4, *EXAMPLES[name][0]))


def test_the_lists_agree():
    assert models.names() == models.ALL_MODELS == tuple(sorted(EXAMPLES))


@every_model
def test_output_starts_at_zero(name, key):
    ys = apply_all(make(name, key), rows(name), SIGNALS, LABELS)
    assert ys.shape == rows(name).shape and ys.dtype == jnp.float32
    assert not ys.any()


@every_model
def test_output_is_finite_and_every_number_hears_the_signal(name, key):
    xs = jnp.broadcast_to(rows(name)[0], rows(name).shape)
    ys = apply_all(trained(make(name, key)), xs, SIGNALS, jnp.zeros(4, jnp.int32))
    assert jnp.isfinite(ys).all()
    assert (ys.std(0) > 1e-3).all()


@every_model
def test_dtype_is_that_of_x_whatever_the_weights(name, key, x64):
    net = make(name, key)
    assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(net))
    for weights in (jnp.float64, jnp.float32, jnp.bfloat16):
        cast = jax.tree.map(lambda a: a.astype(weights) if eqx.is_inexact_array(a) else a, net)  # noqa: B023
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
            assert jax.eval_shape(cast, jax.ShapeDtypeStruct(EXAMPLES[name][0], dtype), 0.5).dtype == dtype


@every_model
def test_jit_is_eager_and_vmap_is_a_loop_and_null_is_none(name, key):
    net, xs = trained(make(name, key)), rows(name)
    ys = apply_all(net, xs, SIGNALS, LABELS)
    loop = jnp.stack([net(x, signal, label) for x, signal, label in zip(xs, SIGNALS, [*LABELS[:3], None])])
    np.testing.assert_allclose(ys, loop, atol=2e-5 * float(jnp.abs(ys).max()))


@every_model
def test_nothing_to_compile_again_for_other_weights(name, key):
    nets = (make(name, key), trained(make(name, key)), make(name, jr.key(7)))
    static = [eqx.partition(net, eqx.is_array)[1] for net in nets]
    assert len({hash(jax.tree.structure(s)) for s in static}) == 1
    assert all(eqx.tree_equal(static[0], s) for s in static)


@every_model
def test_same_key_same_bits(name, key):
    net = make(name, key)
    assert eqx.tree_equal(net, make(name, key))
    assert not eqx.tree_equal(net, make(name, jr.key(1)))
    assert eqx.tree_equal(net, eqx.filter_jit(lambda key: make(name, key))(key))


@every_model
def test_gradient_reaches_every_parameter(name, key):
    net = trained(make(name, key, **({"distinct_bodies": True} if name == "motion_tokens" else {})))
    xs, targets = rows(name), normals(rows(name).shape, 5)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(net):
        return jnp.mean((jax.vmap(net)(xs, SIGNALS, LABELS) - targets) ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(net)):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert jnp.abs(leaf).max() > 1e-6, f"no gradient at {jax.tree_util.keystr(path)}"


@pytest.mark.parametrize("name", ["dit", "mlp"])
def test_forward_mode_agrees_with_reverse_mode(name, key):
    net = trained(make(name, key))
    x, direction, cotangent, _ = rows(name)

    @eqx.filter_jit
    def both(net):
        _, tangent = jax.jvp(lambda x: net(x, 0.5), (x,), (direction,))
        _, pull = jax.vjp(lambda x: net(x, 0.5), x)
        return jnp.vdot(cotangent, tangent), jnp.vdot(pull(cotangent)[0], direction)

    forward, reverse = both(net)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-3)


@every_model
def test_every_label_changes_the_output(name, key):
    net = trained(make(name, key))
    ys = apply_all(net, jnp.broadcast_to(rows(name)[0], rows(name).shape), jnp.full(4, 0.5), LABELS)
    for i in range(4):
        for j in range(i):
            assert jnp.abs(ys[i] - ys[j]).max() > 1e-3
    assert models.null_condition(net) == 3


def test_vector_changes_the_output_and_null_is_none(key):
    net, x = trained(make("mlp", key, classes=None, features=4)), rows("mlp")[0]
    a, b = net(x, 0.5, jnp.array([1.0, 0.0, 2.0, -1.0])), net(x, 0.5, jnp.array([[1.0, 0.0], [2.0, -1.5]]))
    assert jnp.abs(a - b).max() > 1e-3
    null = net(x, 0.5, models.null_condition(net))
    assert jnp.abs(a - null).max() > 1e-3
    np.testing.assert_array_equal(net(x, 0.5), null)


@every_model
def test_bad_input_is_refused(name, key):
    shape, sizes = EXAMPLES[name]
    net, x = make(name, key), rows(name)[0]
    with pytest.raises(InputError, match=r"x must be one sample.*vmap"):
        net(x[None], 0.5)
    with pytest.raises(InputError, match="x must be one sample"):
        net(x[..., :1], 0.5)
    with pytest.raises(InputError, match="x must be one sample"):
        net(x[:0], 0.5)
    with pytest.raises((InputError, TypeCheckError), match=r"float|Float"):
        net(x.astype(jnp.int32), 0.5)
    with pytest.raises(InputError, match=r"signal must be one number.*vmap"):
        net(x, jnp.zeros(3))
    with pytest.raises(InputError, match=r"label must be in 0\.\.2, or 3 for the null label, got 4"):
        net(x, 0.5, 4)
    with pytest.raises(InputError, match="got -1"):
        net(x, 0.5, jnp.array(-1))
    with pytest.raises(InputError, match="integer label"):
        net(x, 0.5, jnp.array(1.0))
    with pytest.raises(InputError, match="without classes or features"):
        make(name, key, classes=None)(x, 0.5, jnp.array(1))
    with pytest.raises(InputError, match="cond must hold 4 numbers"):
        make(name, key, classes=None, features=4)(x, 0.5, jnp.zeros(3))
    with pytest.raises(InputError, match="not both"):
        make(name, key, features=4)
    for size in sizes:
        with pytest.raises(InputError, match=f"{size} must be a positive integer, got 0"):
            make(name, key, **{size: 0})
    with pytest.raises(InputError, match="classes must be a positive integer"):
        make(name, key, classes=0)
    with pytest.raises(InputError, match="shape must hold positive integers"):
        models.make(name, shape=(*shape[:-1], 0), key=key)


@every_model
def test_spec_survives_json(name, key):
    shape, sizes = EXAMPLES[name]
    text = json.dumps(models.spec(name, shape=shape, classes=3, **sizes))
    assert eqx.tree_equal(models.make(**json.loads(text), key=key), make(name, key))


def test_spec_fills_in_defaults_and_takes_numpy_integers():
    spec = models.spec("mlp", shape=np.arange(2, 4).tolist(), width=np.int64(8))
    assert spec == {
        "name": "mlp",
        "shape": [2, 3],
        "width": 8,
        "depth": 3,
        "residual": True,
        "classes": None,
        "features": None,
    }


def test_unknown_names_suggest_the_nearest(key):
    with pytest.raises(InputError, match="unknown model 'motion_token'; did you mean 'motion_tokens'"):
        models.make("motion_token", shape=(16, 2, 2, 2), key=key)
    with pytest.raises(InputError, match="unknown size of model 'mlp' 'widht'; did you mean 'width'"):
        models.make("mlp", shape=(2,), widht=8, key=key)
    with pytest.raises(InputError, match="width must be a number, a string, None or a list of these, got Array"):
        models.make("mlp", shape=(2,), width=jnp.array(8), key=key)


def test_a_name_is_registered_once():
    with pytest.raises(InputError, match="'mlp' is registered already"):
        models.model("mlp")(models.MLP)


WITH_EXAMPLES = ["conservative", "embedding", "equilibrium", "neural_cde", "neural_ode", "neural_sde", "registry"]


@pytest.mark.parametrize("module", [*WITH_EXAMPLES, "suggestion"])
def test_examples_in_docstrings(module):
    names = {"jax": jax, "jnp": jnp, "jr": jr, "np": np, "MLP": models.MLP}
    result = doctest.testmod(importlib.import_module(f"kinema.models.{module}"), extraglobs=names)
    assert result.attempted and not result.failed
