import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema import learn
from kinema.errors import InputError, NotFinite
from kinema.learn import (
    Probe,
    Trainable,
    batch_rows,
    batches,
    fit,
)
from kinema.learn.chunk import Chunks, Fixed


def regression(model, batch, key):
    return jnp.mean((batch["x"] @ model["w"] + model["b"] - batch["y"]) ** 2), {"rows": batch["x"].shape[0]}


def start():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 3)).astype(np.float32)
    return {"x": x, "y": (x @ [1.0, -2.0, 0.5] + 3 + 0.1 * random.normal(size=64)).astype(np.float32)}


def run(data, key, **changes):
    settings = {"optimizer": SGD, "steps": 60, "batch_size": 16, "chunk": 20, "progress": False}
    return fit(start(), regression, data, key=key, **{**settings, **changes})


SGD = optax.sgd(0.1)


def same_bits(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# Exact answers


def test_quadratic_in_closed_form(key):
    """w_k = c + (1 - rate a)^k (w_0 - c), loss_k = a/2 (w_k - c)²."""
    a, c, rate = np.array([1.0, 3.0]), np.array([2.0, -1.0]), 0.1

    def loss(w, batch, key):
        return jnp.sum(jnp.asarray(a / 2, jnp.float32) * (w - c) ** 2), {}

    result = fit(jnp.zeros(2), loss, optimizer=optax.sgd(rate), steps=25, chunk=10, key=key, progress=False)
    k = np.arange(26)[:, None]
    w = c + (1 - rate * a) ** k * (0 - c)
    assert np.allclose(result.model, w[-1], rtol=1e-5)
    assert np.allclose(result.history.loss, (a / 2 * (w - c) ** 2).sum(1)[:-1], rtol=1e-4, atol=1e-7)
    average = 0 * c
    for k in range(1, 26):
        average += (1 - min(0.999, k / (9 + k))) * (w[k] - average)
    assert np.allclose(result.ema, average, rtol=1e-5)
    assert result.step == 25


def test_double_precision(x64, key):
    def loss(w, batch, key):
        return jnp.sum((w - batch.mean(0)) ** 2), {}

    data = np.array([[1.0, 2.0], [3.0, 8.0]])
    result = fit(jnp.zeros(2), loss, data, optimizer=SGD, steps=200, batch_size=2, key=key, progress=False)
    assert result.model.dtype == result.ema.dtype == result.history.loss.dtype == np.float64
    assert np.allclose(result.model, [2, 5], rtol=0, atol=1e-14)


def test_linear_regression_reaches_the_least_squares_solution(data, key):
    columns = np.column_stack([data["x"], np.ones(64)]).astype(np.float64)
    truth = np.linalg.lstsq(columns, data["y"].astype(np.float64), rcond=None)[0]
    result = run(data, key, batch_size=64, steps=200, optimizer=optax.sgd(0.3))
    assert np.allclose([*result.model["w"], result.model["b"]], truth, atol=1e-5)


def test_line_searches_get_the_loss_they_need(data, key):
    """Backtracking takes the value, the gradient and the loss as a function."""
    columns = np.column_stack([data["x"], np.ones(64)]).astype(np.float64)
    truth = np.linalg.lstsq(columns, data["y"].astype(np.float64), rcond=None)[0]
    optimizer = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10))
    result = run(data, key, batch_size=64, optimizer=optimizer, ema=None)
    assert np.allclose([*result.model["w"], result.model["b"]], truth, atol=1e-4)
    assert (np.diff(result.history.loss) < 1e-6).all()


def test_the_path_of_sgd_is_that_of_a_loop_by_hand_bit_for_bit(data, key):
    @jax.jit
    def step(model, x, y):
        gradient = jax.grad(lambda m: jnp.mean((x @ m["w"] + m["b"] - y) ** 2))(model)
        return jax.tree.map(lambda p, g: p - 0.1 * g, model, gradient)

    model, table = start(), jax.tree.map(jnp.asarray, data)
    for rows in batch_rows(key, 64, 16, 0, 60):
        model = step(model, table["x"][rows], table["y"][rows])
    assert same_bits(run(data, key).model, model)


# What must not matter


def test_same_key_same_bits_other_key_other_bits(data, key):
    assert same_bits(run(data, key).model, run(data, key).model)
    assert not same_bits(run(data, key).model, run(data, jr.key(1)).model)


@pytest.mark.parametrize("chunk", [7, 60, 1000])
def test_the_length_of_chunks_does_not_matter(data, key, chunk):
    one, other = run(data, key), run(data, key, chunk=chunk)
    assert np.allclose(one.model["w"], other.model["w"], atol=1e-6)
    assert np.allclose(one.history.loss, other.history.loss, rtol=1e-4)
    assert len(other.history) == 60


def test_data_on_the_host_gives_the_same_bits(data, key, monkeypatch):
    one = run(data, key)
    monkeypatch.setattr(batches, "DEVICE_BYTES", 0)
    assert same_bits(one.model, run(data, key).model)
    assert same_bits(one.model, run(jax.tree.map(jnp.asarray, data), key).model)


def test_the_model_of_the_caller_is_not_touched(data, key):
    model = start()
    shared = jnp.zeros(3)
    model |= {"w": shared, "again": shared}
    fit(model, regression, data, optimizer=SGD, steps=3, batch_size=4, key=key, progress=False)
    assert model["w"].tolist() == [0, 0, 0] and shared.tolist() == [0, 0, 0]


def test_a_second_call_does_not_trace_again(data, key):
    traces = []

    def counted(model, batch, key):
        traces.append(1)
        return regression(model, batch, key)

    def go(model, key, steps):
        return fit(
            model,
            counted,
            data,
            optimizer=learn.adam(1e-2, 100),
            steps=steps,
            batch_size=8,
            chunk=10,
            key=key,
            progress=False,
        )

    go(start(), key, 30)
    first = len(traces)
    go(jax.tree.map(lambda x: x + 1, start()), jr.key(7), 50)
    assert len(traces) == first <= 2


def test_a_chunk_uses_the_memory_of_the_state_before(key):
    source = learn.BackPropagation(lambda w, batch, key: (jnp.sum(w**2), {}))
    state = learn.begin(SGD, jnp.ones(1000), 0.9)
    chunks = Chunks(Fixed(None, None, key, source, SGD, 0.9, None), state)
    chunks.run(None, 3)
    assert state.params.is_deleted() and state.ema.is_deleted()
    assert np.allclose(chunks.state.params, 0.8**3)


# Batches


def test_a_batch_may_be_larger_than_the_data(key):
    def loss(w, batch, key):
        return jnp.sum(w**2), {"count": jnp.bincount(batch, length=3)}

    result = fit(jnp.ones(1), loss, np.arange(3), optimizer=SGD, steps=4, batch_size=6, key=key, progress=False)
    assert result.history.metrics["count"].tolist() == [[2, 2, 2]] * 4


def test_metrics_of_every_step_are_kept(data, key):
    history = run(data, key, steps=33).history
    assert history.metrics["rows"].tolist() == [16] * 33
    assert len(history.loss) == 33 and history.loss[-1] < history.loss[0]


# Parts


def test_only_what_is_trainable_moves(data, key):
    result = run(data, key, trainable="b")
    assert result.model["w"].tolist() == [0, 0, 0] and result.model["b"] != 0
    assert same_bits(result.model, run(data, key, trainable=Trainable(lambda name, leaf: leaf.ndim == 0)).model)


def test_a_model_of_modules_functions_and_numbers(data, key):
    net = eqx.nn.MLP(3, "scalar", 8, 1, activation=jax.nn.gelu, key=key)

    def loss(model, batch, key):
        net, scale = model
        return jnp.mean((scale * jax.vmap(net)(batch["x"]) - batch["y"]) ** 2), {}

    result = fit(
        (net, 2.0), loss, data, optimizer=learn.adam(1e-2, 100), steps=100, batch_size=64, key=key, progress=False
    )
    assert result.model[1] == 2.0 and result.history.loss[-1] < 0.3 * result.history.loss[0]
    assert jnp.isfinite(result.ema[0](jnp.ones(3)))


class Sign(learn.GradientSource):
    """A gradient that is not the derivative of anything."""

    def __call__(self, params, static, batch, key):
        return jax.tree.map(jnp.sign, params), {"loss": jnp.zeros(())}


def test_any_gradient_source(key):
    result = fit(jnp.array([1.0, -2.0]), Sign(), optimizer=SGD, steps=5, key=key, progress=False)
    assert np.allclose(result.model, [0.5, -1.5])


def test_probes_see_model_and_average_when_due(data, key):
    probes = [
        Probe("w", lambda model, key: {"w": model["w"], "n": 3}, every=20),
        Probe("listed", lambda model, key: jr.normal(key), every=(5, 41)),
        Probe("average", lambda model, key: model["b"], every=60, of="ema"),
    ]
    result = run(data, key, probes=probes)
    seen = result.history.probes
    assert seen["w"].steps.tolist() == [0, 20, 40, 60] and seen["listed"].steps.tolist() == [20, 60]
    assert np.array_equal(seen["w"].values["w"][-1], result.model["w"]) and seen["w"].values["w"][0].tolist() == [
        0,
        0,
        0,
    ]
    assert seen["average"].values["."][-1] == result.ema["b"]
    assert seen["listed"].values["."][0] == jr.normal(probes[1].key(key, 20))
    assert same_bits(result.model, run(data, key).model)


# Errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"chunk": -1}, "chunk must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"batch_size": None}, "data and batch_size go together"),
        ({"ema": 1.0}, r"ema must be None or in \[0, 1\)"),
        ({"ema": -0.5}, "ema must be"),
        ({"resume": True}, "needs the folder"),
        ({"probes": [Probe("a", print), Probe("a", print)]}, "different names"),
        ({"trainable": "nothing"}, "unknown trainable leaf"),
        ({"data": {"x": np.ones((3, 3)), "y": np.ones(4)}}, "same number of rows"),
        ({"data": {"x": np.ones((3, 3)), "y": np.full(3, np.nan)}}, "y has NaN or infinity in row 0"),
    ],
)
def test_bad_arguments_are_named(data, key, changes, message):
    changes = {"data": data, "key": key, **changes}
    with pytest.raises(InputError, match=message):
        run(**changes)


def test_several_keys_are_not_a_key(data, key):
    with pytest.raises((InputError, TypeError), match="key"):  # TypeError where annotations are checked
        run(data, jr.split(key))


def test_batch_size_without_data(key):
    with pytest.raises(InputError, match="go together, got no data"):
        fit(jnp.ones(1), regression, optimizer=SGD, steps=1, batch_size=3, key=key)


def test_a_loss_that_is_not_finite_stops_at_its_step(key, tmp_path):
    """Row 13 is the only one with a negative number under the root."""
    data = np.where(np.arange(40) == 13, -1.0, 1.0).astype(np.float32)
    at = int(np.flatnonzero(batch_rows(key, 40, 1, 0, 40).ravel() == 13)[0])

    def loss(w, batch, key):
        return jnp.mean(w * jnp.sqrt(batch)), {}

    settings = {"optimizer": SGD, "steps": 40, "batch_size": 1, "chunk": 4, "key": key, "progress": False}
    with pytest.raises(NotFinite, match=f"not finite at step {at} on data rows 13; no folder"):
        fit(jnp.ones(1), loss, data, **settings)
    with pytest.raises(NotFinite, match=f"at step {at} .*last good checkpoint is .*step-{at // 4 * 4:08d}"):
        fit(jnp.ones(1), loss, data, folder=tmp_path / "run", checkpoint_every=4, **settings)
    assert np.isfinite(learn.load_model(tmp_path / "run", jnp.ones(1))).all()
    assert np.isnan(learn.History.load(tmp_path / "run" / "history.json").loss[at])


def test_long_batches_are_shortened_in_the_message(key):
    def loss(w, batch, key):
        return jnp.log(-jnp.sum(w)), {}

    with pytest.raises(NotFinite, match=r"rows (\d+, ){8}\.\.\. \(64 in all"):
        fit(jnp.ones(1), loss, np.arange(64), optimizer=SGD, steps=1, batch_size=64, key=key, progress=False)


def test_parameters_that_are_not_finite_are_never_returned_or_saved(key, tmp_path):
    """The derivative of |w| = sqrt(w²) at 0 is NaN although the loss is 0."""

    def loss(w, batch, key):
        return jnp.sqrt(jnp.sum(w**2)), {}

    with pytest.raises(NotFinite, match=r"parameters are not finite after step 0 .*step-00000000"):
        fit(jnp.zeros(2), loss, optimizer=SGD, steps=1, key=key, folder=tmp_path / "run", progress=False)
    assert learn.load_model(tmp_path / "run", jnp.ones(2)).tolist() == [0, 0]
