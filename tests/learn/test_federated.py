"""Federated rules against closed forms: fixed points of quadratic clients, and rules that must coincide."""

import importlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError, MissingExtra, NotFinite
from kinema.learn import federated
from kinema.learn.federated import ALL_RULES, fedavg, fedavg_m, fedavg_m_vr, scaffold, scaffold_m, scaffold_m_vr

A, B = np.array([0.5, 1.0, 1.7, 2.4, 3.0]), np.array([1.2, -0.4, 0.9, -1.5, 0.3])


def bowl(x, batch, key):
    return 0.5 * jnp.mean(batch["a"] * (x - batch["b"]) ** 2), {}


def lines(model, batch, key):
    return jnp.mean((batch["x"] @ model["w"] + model["b"] - batch["y"]) ** 2), {}


def bowls():
    return {"a": A[:, None], "b": B[:, None]}


def shares(name, rate, steps, beta):
    """How much each client counts in the fixed point."""
    if "scaffold" in name:
        return A
    return 1 - (1 - rate * A * (beta if name == "fedavg-m" else 1)) ** steps


def make(name, beta=0.2):
    return ALL_RULES[name]() if name in ("fedavg", "scaffold") else ALL_RULES[name](beta)


def simulate(rule, loss, model, clients, **options):
    return federated.simulate(rule, loss, model, clients, **({"key": jr.key(0), "progress": False} | options))


@pytest.mark.parametrize("name", ALL_RULES)
def test_fixed_points(name, x64):
    """At two settings, so that a direction that were not an average gradient would move the second."""
    for rate, steps in ((0.1, 10), (0.05, 4)) if name == "fedavg-m" else ((0.1, 10),):
        options = {"rounds": 900, "chunk": 900, "local_steps": steps, "local_lr": rate, "server_lr": 0.3}
        run = simulate(make(name), bowl, jnp.zeros(()), bowls(), **options)
        share = shares(name, rate, steps, 0.2)
        assert abs(float(run.model) - share @ B / share.sum()) < 1e-12
        if "scaffold" in name:
            gap = jax.tree.map(lambda c, own: c - own.mean(0), run.server.control, run.controls)
            assert abs(float(gap)) < 1e-12
        elif name != "fedavg-m":
            assert abs(float(run.model) - A @ B / A.sum()) > 0.02  # it is biased


def rows(clients=6, count=8):
    random = np.random.default_rng(1)
    x = random.normal(size=(clients, count, 3)).astype(np.float32)
    return {"x": x, "y": (x @ np.array([1.0, -2.0, 0.5]) + random.normal(size=(clients, count))).astype(np.float32)}


LINE = {"w": jnp.zeros(3), "b": jnp.zeros(())}
SOME = {"rounds": 7, "chunk": 7, "local_steps": 3, "local_lr": 0.05, "batch_size": 4, "clients_per_round": 3}


def test_mean_of_controls_every_round():
    """c is the mean of the c_i, also where few take part, replies get lost and a client diverges."""
    data = rows()
    data["y"][4] = np.inf
    with pytest.warns(UserWarning, match="member 4"):
        run = simulate(scaffold_m(), lines, LINE, data, dropout=0.3, measure=lambda m: {"w": m["w"]}, **SOME)
    assert set(run.lost) == {4} and np.isfinite(run.model["w"]).all()
    for c, own in zip(jax.tree.leaves(run.server.control), jax.tree.leaves(run.controls)):
        np.testing.assert_allclose(c, own.mean(0), atol=1e-6)
    assert run.history.metrics["w"].shape == (7, 3) and run.history.loss.shape == (7, 3)
    assert not run.controls["w"][4].any()  # never delivered


def test_a_single_step_of_all_is_gradient_descent():
    data = rows()
    run = simulate(fedavg(), lines, LINE, data, rounds=5, chunk=5, local_steps=1, local_lr=0.1)
    model, everything = LINE, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
    for _ in range(5):
        grad = jax.grad(lambda m: lines(m, everything, None)[0])(model)
        model = jax.tree.map(lambda p, g: p - 0.1 * g, model, grad)
    for name in model:
        np.testing.assert_allclose(run.model[name], model[name], atol=1e-6)


def test_variance_reduction_is_gradient_descent_where_nothing_varies(x64):
    """Clients alike, K = 1, g begins as the gradient: momentum corrects itself away, whatever beta."""
    clients = {"a": np.full((4, 1), 1.7), "b": np.full((4, 1), 2.0)}
    same = {"rounds": 6, "chunk": 6, "local_steps": 1, "local_lr": 0.1, "server_lr": 0.3}
    for rule in (fedavg_m_vr(0.1), scaffold_m_vr(0.1)):
        run = simulate(rule, bowl, jnp.zeros(()), clients, init_direction="large_batch", **same)
        assert abs(float(run.model) - 2 * (1 - (1 - 0.3 * 1.7) ** 6)) < 1e-13


def test_batches_are_the_same_at_both_models():
    """Noise that does not depend on the point: with g = 0, variance reduction leaves beta of it."""

    def noisy(x, batch, key):
        return jnp.sum(x * jr.normal(key, x.shape)), {}

    same = {"rounds": 1, "local_steps": 1, "local_lr": 1.0, "server_lr": 1.0}
    whole, reduced = (
        simulate(rule, noisy, jnp.zeros(3), np.ones((2, 1)), **same).model for rule in (fedavg(), fedavg_m_vr(0.25))
    )
    np.testing.assert_allclose(reduced, 0.25 * whole, rtol=1e-6)


def test_directions():
    """The table of the paper, in numbers."""
    grad, previous, momentum, shift = ({"w": jnp.array([v])} for v in (1.0, 10.0, 100.0, 1000.0))
    found = {name: float(make(name).direction(grad, previous, momentum, shift)["w"][0]) for name in ALL_RULES}
    assert found == pytest.approx(
        {
            "fedavg": 1,
            "fedavg-m": 0.2 * 1 + 0.8 * 100,
            "scaffold": 1001,
            "scaffold-m": 0.2 * 1001 + 0.8 * 100,
            "fedavg-m-vr": 1 + 0.8 * 90,
            "scaffold-m-vr": 1 + 0.2 * 1000 + 0.8 * 90,
        }
    )


def test_rows_weigh(x64):
    """Clients of 3 and 1 rows: weighed by them, one step of all is a step on all rows together."""
    clients = federated.divide({"a": np.ones(4), "b": np.array([0.0, 1.0, 2.0, 9.0])}, [np.arange(3), np.array([3])])
    same = {"rounds": 1, "local_steps": 1, "local_lr": 1.0, "batch_size": 3}
    uniform, weighed = (
        float(simulate(scaffold(), bowl, jnp.zeros(()), clients, weights=weights, **same).model)
        for weights in ("uniform", "rows")
    )
    assert uniform == pytest.approx((1 + 9) / 2) and weighed == pytest.approx(12 / 4)


def test_optimizers_of_optax_are_the_plain_steps():
    data = rows()
    plain = simulate(scaffold_m(), lines, LINE, data, server_lr=0.3, **SOME)
    given = {"local_optimizer": optax.sgd(0.05), "server_optimizer": optax.sgd(0.3)}
    other = simulate(scaffold_m(), lines, LINE, data, **given, **SOME)
    np.testing.assert_allclose(other.model["w"], plain.model["w"], rtol=1e-5)


def test_what_does_not_learn_stays():
    model = {"w": jnp.zeros(3), "b": jnp.zeros(()), "count": jnp.array(7)}
    with pytest.raises(InputError, match="model leaf count is int32, which has no average"):
        simulate(fedavg(), lines, model, rows(), **SOME)
    run = simulate(fedavg(), lines, model, rows(), trainable="w", **SOME)
    assert run.model["count"] == 7 and run.model["b"] == 0 and run.model["w"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_round": 7}, r"clients_per_round must be in 1\.\.6"),
        ({"clients_per_round": 0}, r"clients_per_round must be in 1\.\.6"),
        ({"local_steps": 0}, "local_steps must be a whole number"),
        ({"local_lr": 0.0}, "local_lr must be positive"),
        ({"server_lr": -1.0}, "server_lr must be positive"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"clients": {"x": np.ones((6, 2, 3)), "y": np.ones((5, 2))}}, "x has 6, y 5"),
        ({"clients": federated.divide(np.ones(3), [np.arange(2), np.array([2])]), "clients_per_round": 1,
          "batch_size": None}, "equal size"),
    ],
)  # fmt: skip
def test_bad_input(options, message):
    options = SOME | options
    clients = options.pop("clients", None) or rows()
    with pytest.raises(InputError, match=message):
        simulate(fedavg(), lines, LINE, clients, **options)


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.5])
def test_beta(beta):
    for rule in (fedavg_m, scaffold_m, fedavg_m_vr, scaffold_m_vr):
        with pytest.raises(InputError, match=r"beta must be in \(0, 1\]"):
            rule(beta)


def test_a_server_that_diverges_is_an_error():
    with pytest.raises(NotFinite, match="no member gave a finite reply"):
        simulate(
            fedavg(), bowl, jnp.ones(()), bowls(), rounds=400, chunk=400, local_steps=3, local_lr=2.0, server_lr=9.0
        )


def test_an_equinox_model():
    net = eqx.nn.MLP(3, 1, 4, 1, key=jr.key(0))

    def loss(net, batch, key):
        return jnp.mean((jax.vmap(net)(batch["x"])[:, 0] - batch["y"]) ** 2), {}

    run = simulate(fedavg_m(), loss, net, rows(), server_lr=0.3, **SOME)
    assert isinstance(run.model, eqx.nn.MLP)
    assert len(jax.tree.leaves(eqx.filter(run.model, eqx.is_array))) == 4
    assert run.history.loss[-1].mean() < run.history.loss[0].mean()


def test_flower_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.delitem(sys.modules, "kinema.interop.flower", raising=False)
    with pytest.raises(MissingExtra, match=r"flwr is not installed; pip install 'kinema\[federated\]'"):
        importlib.import_module("kinema.interop.flower")
