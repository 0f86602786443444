"""Equilibrium propagation against closed forms: linear networks, back-propagation, Cauchy's formula, the Jacobian."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from conftest import assert_within_error

from kinema import learn
from kinema.errors import InputError
from kinema.learn import equilibrium as eq
from kinema.motion import trees

A = np.array([[2.0, -0.1, 0.0], [-0.9, 1.5, 0.6], [0.4, 0.0, 1.0]])
B, TARGET = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.4])


class Pull(eqx.Module):
    """-(A u - b x): rests at A^-1 b x."""

    matrix: jax.Array
    b: jax.Array

    def __call__(self, u, x):
        return self.b * x - self.matrix @ u


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in trees.leaf_names(tree).values()])


def apart(one, other):
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other))


def test_linear_network(x64):
    """With e = u - target the error is A^-1 e / rate where back-propagation has A^-T e / rate; finite nudges solve
    (A - beta / rate) (u - u0) = beta e / rate, whose Cauchy mean over N points is off by (beta A^-1 / rate)^N."""
    rate = 0.2
    net = eq.Flow(Pull(jnp.asarray(A), jnp.asarray(B)), lambda u: u, jnp.zeros(3), rate)
    rest = np.linalg.solve(A, B)
    error = rest - TARGET

    @eqx.filter_jit
    def run(net):
        task = eq.Nudging(net, jnp.asarray(1.0), jnp.asarray(TARGET), eq.squared_error, 400, 400)
        return [estimator(task) for estimator in estimators]

    small, points = 0.02, (1, 2, 3, 4)
    nudges = [eq.Cauchy(small, n) for n in points]
    estimators = eq.Derivative(), eq.RecurrentBackProp(), eq.Online(small, 4), *nudges
    derivative, recurrent, online, *nudged = run(net)
    assert np.abs(derivative.a - rest).max() < 1e-10 and derivative.residual < 1e-10
    inverse = np.linalg.inv(A) / rate
    assert np.abs(derivative.delta - inverse @ error).max() < 1e-9
    assert np.abs(recurrent.delta - inverse.T @ error).max() < 1e-9
    for count, found in zip(points, nudged):
        bias = np.linalg.matrix_power(small * inverse, count)
        truth = np.linalg.solve(np.eye(3) - bias, inverse @ error)
        assert np.abs(found.delta - truth).max() < 1e-8
    assert np.abs(online.delta - nudged[-1].delta).max() < 1e-8


@pytest.fixture(scope="module")
def exact():
    """Of a symmetric and of a turned network of three layers: the oracle, two estimates, and errors of the others."""
    with jax.enable_x64(True):
        x, y = jr.uniform(jr.key(7), (8,)), jnp.array(1)

        @eqx.filter_jit
        def run(net):
            def estimate(estimator):
                return eq.ep_gradient(net, x, y, estimator=estimator, steps=(150, 100))[0]

            task = eq.Nudging(net, x, y, free_steps=150, nudged_steps=100)
            others = eq.OneSided(1e-3), eq.Symmetric(0.4), eq.Cauchy(0.4, 8), eq.Online(0.4, 8)
            return {
                "implicit": eq.implicit_gradient(net, x, y, tol=1e-12)[0],
                "through time": eqx.filter_grad(lambda net: eq.settled_loss(net, x, y, steps=150))(net),
                "derivative": estimate(eq.Derivative()),
                "recurrent": estimate(eq.RecurrentBackProp()),
                "delta": eq.Derivative()(task).delta,
                "nudged": [other(task).delta for other in others],
            }

        nets = {angle: eq.dense_network((8, 7, 6, 5), 3, angle=angle, key=jr.key(1)) for angle in (0.0, 60.0)}
        return {angle: jax.tree.map(np.asarray, eqx.filter(run(net), eqx.is_array)) for angle, net in nets.items()}


def test_exact_where_symmetric(exact):
    """The derivative estimate is the gradient, of feedback weights too."""
    found = exact[0.0]
    for name in ("through time", "derivative", "recurrent"):
        assert apart(found[name], found["implicit"]) < 1e-7, name


def test_asymmetry_is_a_bias_of_its_own(exact):
    """Turned feedback: the recurrent estimate is exact all the same, the derivative is not."""
    found = exact[60.0]
    assert apart(found["recurrent"], found["implicit"]) < 1e-7
    assert apart(found["derivative"], found["implicit"]) > 0.1


@pytest.mark.parametrize("angle", [0.0, 60.0])
def test_nudges_converge_to_the_derivative(exact, angle):
    """As beta^points, symmetric or not."""
    one_sided, two, eight, online = exact[angle]["nudged"]
    limit = exact[angle]["delta"]
    assert apart(one_sided, limit) < 1e-2 and apart(eight, limit) < 0.05 * apart(two, limit)
    assert apart(online, eight) < 1e-3


def test_energy_network(x64):
    """E = |u|^2 / 2 + |u|^4 / 4 - x.u, not quadratic: equilibrium propagation is exact on it."""

    class Well(eqx.Module):
        stiffness: jax.Array

        def __call__(self, u, x):
            return self.stiffness * (u**2).sum() / 2 + (u**2).sum() ** 2 / 4 - (x * u).sum()

    net = eq.Flow(eq.Downhill(Well(jnp.asarray(1.0))), lambda u: u, jnp.zeros(2), rate=0.2)
    x, y = jnp.array([0.6, -0.8]), jnp.array([1.0, 0.0])
    grads, aux = eqx.filter_jit(lambda net: eq.ep_gradient(net, x, y, loss=eq.squared_error, steps=(200, 200)))(net)
    # |x| = 1: u = r x with r + r^3 = 1; dr/dstiffness = -r / (1 + 3 r^2)
    r = np.roots([1, 0, 1, -1])
    r = float(r[np.abs(r.imag) < 1e-12].real[0])
    truth = float(np.dot(r * np.asarray(x) - np.asarray(y), np.asarray(x)) * -r / (1 + 3 * r**2))
    assert aux["settled"] and np.isclose(grads.field.energy.stiffness, truth, rtol=1e-9)


def test_convolutions_have_an_energy(x64):
    """Tied convolutions with softmax pooling: a symmetric Jacobian, so the estimate is exact, complex nudges too."""
    net = eq.conv_network((4, 4, 1), (2, 3), 3, angle=None, key=jr.key(2))
    x, y = jr.uniform(jr.key(3), (4, 4, 1)), jnp.array(2)

    @eqx.filter_jit
    def run(net):
        a = net.activate(eq.settle(net, x, steps=100).u)
        symmetry = eq.jacobian_symmetry(net, a, x)
        task = eq.Nudging(net, x, y, free_steps=100, nudged_steps=60)
        return symmetry, [estimator(task).delta for estimator in estimators]

    estimators = eq.RecurrentBackProp(), eq.Derivative(), eq.Cauchy(0.2, 6)
    symmetry, (truth, derivative, cauchy) = run(net)
    assert np.isclose(symmetry, 1, atol=1e-12)
    assert apart(derivative, truth) < 1e-7 and apart(cauchy, truth) < 1e-3


def test_homeostatic_loss(key, x64):
    """2 |A|_F^2 / n, with A half of forward less feedback weights; its gradient leaves the activities alone."""
    net = eq.dense_network((6, 5, 4, 3), 2, angle=90.0, key=jr.key(4))
    x = jnp.linspace(0, 1, 6)
    a = tuple(jnp.full(n, 0.3) for n in (5, 4, 3))
    gaps = [np.asarray(one.weight - back.weight) for one, back in zip(net.maps[1:], net.feedback)]
    antisymmetric, n = sum((gap**2).sum() for gap in gaps) / 2, 12
    sums = [np.asarray(one.weight + back.weight) for one, back in zip(net.maps[1:], net.feedback)]
    symmetric = sum((one**2).sum() for one in sums) / 2 + n  # the diagonal of -a

    @eqx.filter_jit
    def run(net):
        many = jax.vmap(lambda k: eq.homeostatic_loss(net, a, x, key=k, probes=1))(jr.split(key, 4000))
        grads = eqx.filter_grad(lambda net: eq.homeostatic_loss(net, a, x, key=key, probes=4000))(net)
        return many, grads, eq.jacobian_symmetry(net, a, x)

    many, grads, symmetry = run(net)
    assert_within_error(many.mean(), 2 * antisymmetric / n, standard_error=many.std() / 4000**0.5)
    assert np.isclose(symmetry, symmetric**0.5 / (symmetric**0.5 + antisymmetric**0.5))
    for gap, one, back in zip(gaps, grads.maps[1:], grads.feedback):
        assert np.abs(one.weight - 2 * gap / n).max() < 0.1 and np.abs(back.weight + 2 * gap / n).max() < 0.1
    assert not flat(grads.maps[0]).any() and not flat(grads.readout).any()


def test_fit_trains_with_it(key):
    """Three inputs to be told apart; metrics say that all settle and that the Jacobian becomes symmetric."""
    data = jnp.eye(3)[jnp.arange(30) % 3], jnp.arange(30) % 3
    net = eq.dense_network((3, 8, 6), 3, angle=90.0, key=key)
    source = eq.EquilibriumPropagation(estimator=eq.Symmetric(0.1), steps=(40, 20), homeostasis=1.0, probes=1)
    options = {"steps": 150, "batch_size": 10, "chunk": 150, "progress": False}
    probe = eq.symmetry_probe(jnp.eye(3), steps=40)
    run = learn.fit(net, source, data, optimizer=optax.adam(0.02), key=key, probes=[probe], **options)
    metrics, symmetry = run.history.metrics, run.history.probes["symmetry"].values["."]
    assert symmetry[0] < 0.8 < 0.9 < symmetry[-1] < 1
    assert metrics["loss"][0] > 0.9 and metrics["loss"][-1] < 0.2
    assert metrics["homeostatic"][-1] < 0.2 * metrics["homeostatic"][0] and metrics["unsettled"].mean() < 0.05


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.abs, jnp.tanh], ids=["relu", "abs", "tanh"])
def test_holomorphic_or_refused(activation):
    net = eq.dense_network((4, 3, 2), 2, activation=activation, key=jr.key(0))
    what = jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), eq.cross_entropy
    if activation is jnp.tanh:
        eq.check_holomorphic(net, *what)
        return
    with pytest.raises(InputError, match=r"activation of layer 0 is not holomorphic.*dsilu.*softmax_pool"):
        jax.eval_shape(lambda net: eq.ep_gradient(net, jnp.ones(4), 0, estimator=eq.Cauchy(0.1, 4)), net)


def test_parts_that_are_not_holomorphic_are_named():
    what = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    largest = eq.Flow(lambda u, x: x - jnp.maximum(u, u[::-1]), lambda u: u, jnp.zeros(2))
    with pytest.raises(InputError, match=r"the drive is not holomorphic.*ReLU"):
        eq.check_holomorphic(largest, *what, eq.squared_error)
    smooth = eq.Flow(lambda u, x: x - u, lambda u: u, jnp.zeros(2))
    with pytest.raises(InputError, match="the loss is not holomorphic"):
        eq.check_holomorphic(smooth, *what, lambda out, y: (abs(out - y) ** 2).sum() + 0j)
    refusing = eq.Flow(lambda u, x: jax.lax.erf(u), lambda u: u, jnp.zeros(2))
    with pytest.raises(InputError, match=r"the drive takes no complex numbers"):
        eq.check_holomorphic(refusing, *what, eq.squared_error)


def test_what_does_not_settle_is_told():
    growing = eq.Flow(lambda u, x: u + x, lambda u: u, jnp.zeros(1), rate=0.5)
    with pytest.warns(UserWarning, match="1 of 1 samples have not settled after 7 steps"):
        assert not eq.settle(growing, jnp.ones(1), max_steps=7).settled
    mixed = eq.Flow(lambda u, x: x * u - 1, lambda u: u, jnp.zeros(1), rate=0.5)
    x = jnp.array([[-1.0], [1.0], [-2.0], [2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jax.vmap(lambda x: eq.settle(mixed, x, max_steps=30))(x)
    assert found.settled.tolist() == [True, False, True, False]
    with pytest.warns(UserWarning, match="2 of 4 samples"):
        eq.warn_unsettled(found)


def test_bad_input(key):
    net = eq.dense_network((3, 2), 2, key=key)
    for make, words in (
        (lambda: eq.Cauchy(0.1, 0), "points must be a positive integer, got 0"),
        (lambda: eq.Cauchy(0.0, 4), "beta must be a finite number other than 0"),
        (lambda: eq.OneSided(0.0), "beta must"),
        (lambda: eq.Symmetric(float("nan")), "beta must"),
        (lambda: eq.Online(0.1, 2), "points must be at least 3"),
        (lambda: eq.settle(net, jnp.ones(3), beta=0.1), "beta without y"),
        (lambda: eq.settle(net, jnp.ones(3), steps=0), "steps must be a positive integer"),
        (lambda: eq.settle(net, jnp.ones(3), tol=0.0), "tol must be positive"),
        (lambda: eq.EquilibriumPropagation(steps=(10, 0)), "nudged_steps must be"),
        (lambda: eq.EquilibriumPropagation(homeostasis=-1.0), "homeostasis at least 0"),
        (lambda: eq.EquilibriumPropagation()(net, net, jnp.ones(3), key), "pairs"),
        (lambda: eq.dense_network((3,), 2, key=key), "sizes must hold"),
        (lambda: eq.dense_network((3, 2, 2), 2, angle=200.0, key=key), "angle must be in"),
        (lambda: eq.conv_network((2, 2, 1), (2, 2), 2, key=key), "sides of 4"),
        (lambda: eq.Flow(lambda u, x: u, lambda u: u, jnp.zeros(1), rate=0.0), "rate must be positive"),
        (lambda: eq.Layered(net.maps, net.maps, net.readout, jnp.tanh), "feedback needs 0 maps"),
        (lambda: eq.homeostatic_loss(net, (jnp.ones(2),), jnp.ones(3), key=key, probes=0), "probes must be"),
    ):
        with pytest.raises(InputError, match=words):
            make()
