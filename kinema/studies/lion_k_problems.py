"""What the study of Lion-K moves: quadratics with known constrained optima, and a small classifier of digits."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array
from scipy.optimize import minimize

from kinema.errors import require
from kinema.learn.optim import (
    L1,
    L2,
    GroupL2,
    Huber,
    L2Squared,
    Lp,
    Nuclear,
    PseudoHuber,
    ReluL1,
    TopK,
    lion_k,
    scale_by_lion_k,
)
from kinema.verify import LyapunovTrace, lyapunov_trace, monitor_lion_k, optimality_gap

SHAPE = (2, 3)
LION = "Lion"
FAMILY = {
    LION: L1(),
    "huber": Huber(0.1),
    "pseudo-huber": PseudoHuber(0.1),
    "relu l1": ReluL1(0.1),
    "top 2": TopK(2),
    "l2 squared": L2Squared(),
    "l1.5": Lp(1.5),
    "l2": L2(),
    "rows": GroupL2(),
    "nuclear": Nuclear(),
}


class Quadratic(NamedTuple):
    """f(x) = <x, Q x> / 2 - <b, x> of a (2, 3) matrix x."""

    q: Array
    b: Array

    @classmethod
    def draw(cls, key) -> "Quadratic":
        """Eigenvalues from 0.1 up; an unconstrained optimum that lies well outside."""
        key_q, key_b = jr.split(key)
        a = jr.normal(key_q, (6, 6))
        return cls(a @ a.T / 6 + 0.1 * jnp.eye(6), 2 * jr.normal(key_b, (6,)))

    def __call__(self, x) -> Array:
        return 0.5 * x.ravel() @ self.q @ x.ravel() - self.b @ x.ravel()


@functools.partial(jax.jit, static_argnames=("name", "decay", "steps"))
def solve(problems: Quadratic, name: str, decay: float, steps: int) -> tuple[Array, Array, Array]:
    """(x, objective, certified gap) of each problem after steps whose rate falls from 0.1 to 1e-8."""
    rule = lion_k(optax.exponential_decay(0.1, steps, 1e-7), FAMILY[name], weight_decay=decay)

    def one(problem):
        def step(carry, _):
            x, state = carry
            updates, state = rule.update(jax.grad(problem)(x), state, x)
            return (x + updates, state), None

        start = 5 * jnp.ones(SHAPE)
        (x, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=steps)
        k = FAMILY[name]
        return x, problem(x) + k.conjugate(decay * x) / decay, optimality_gap(rule, x, jax.grad(problem)(x))

    return jax.vmap(one)(problems)


def by_scipy(problem: Quadratic, name: str, decay: float) -> float | None:
    """The least f(x) + K*(λx) / λ by SciPy; None where it has no method for that constraint."""
    q, b = np.asarray(problem.q), np.asarray(problem.b)
    box = [(-1 / decay, 1 / decay)] * 6
    bend = {"huber": 0.1 * decay, "l2 squared": decay}.get(name, 0.0)

    def value(x):
        return 0.5 * x @ q @ x - b @ x + bend / 2 * x @ x, q @ x - b + bend * x

    if name in (LION, "huber", "l2 squared"):
        bounds = None if name == "l2 squared" else box
        tight = {"ftol": 1e-16, "gtol": 1e-13, "maxiter": 10_000}
        return float(minimize(value, np.zeros(6), jac=True, bounds=bounds, method="L-BFGS-B", options=tight).fun)
    if name in ("l2", "rows"):
        groups = (slice(0, 6),) if name == "l2" else (slice(0, 3), slice(3, 6))
        inside = [{"type": "ineq", "fun": lambda x, part=part: 1 - decay**2 * x[part] @ x[part]} for part in groups]
        found = minimize(
            value, np.zeros(6), jac=True, constraints=inside, method="SLSQP", options={"ftol": 1e-15, "maxiter": 1000}
        )
        return float(found.fun)
    return None


class Digits(NamedTuple):
    """Pixels (n, 64) from -0.5 to 0.5 and classes, to learn from and to judge by."""

    x: Array
    label: Array
    x_held: Array
    label_held: Array

    @classmethod
    def load(cls, n: int) -> "Digits":
        """scikit-learn's 8 x 8 digits: the first `n`, and the last 297."""
        found = require("sklearn.datasets", "digits").load_digits()
        x, label = jnp.asarray(found.data / 16 - 0.5), jnp.asarray(found.target)
        return cls(x[:n], label[:n], x[1500:], label[1500:])


def logits(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["in bias"])
    return hidden @ params["out"] + params["out bias"]


def loss(params, x, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), label).mean()


def start(key, size: float = 2.0) -> dict[str, Array]:
    """Weights twice as large as usual, so that they begin outside their bounds."""
    key_in, key_out = jr.split(key)
    return {
        "in": size * jr.normal(key_in, (64, 32)) / 8,
        "in bias": jnp.zeros(32),
        "out": size * jr.normal(key_out, (32, 10)) / 32**0.5,
        "out bias": jnp.zeros(10),
    }


def rows(name, leaf):
    """A bound on the incoming weights of every unit, and on each bias vector."""
    return GroupL2(0) if leaf.ndim > 1 else L2()


def spectral(name, leaf):
    """A bound on the spectral norm of every matrix, and on each bias vector."""
    return Nuclear() if leaf.ndim > 1 else L2()


GEOMETRIES = {LION: (L1(), 5.0), "huber": (Huber(0.01), 5.0), "rows": (rows, 1.0), "nuclear": (spectral, 1.0)}
SHRINK = 0.02  # rate times decay, ηλ


class Training(NamedTuple):
    """A run watched at every step; `curvature` is f(x + d) - f(x) - <∇f(x), d> of each step d."""

    trace: LyapunovTrace
    params: dict[str, Array]
    curvature: np.ndarray
    accuracy: float

    @property
    def rises(self) -> np.ndarray:
        """Changes of H from one step of phase 2 to the next."""
        return np.diff(self.trace.value)[self.inside]

    @property
    def beyond(self) -> np.ndarray:
        """What of them is more than the curvature."""
        return self.rises - self.curvature[:-1][self.inside]

    @property
    def inside(self) -> np.ndarray:
        return self.trace.phase[:-1] == 2

    @property
    def left(self) -> int:
        """Steps outside after the first inside."""
        return int(np.sum(self.trace.phase[np.argmax(self.trace.phase == 2) :] == 1))

    @property
    def distance(self) -> np.ndarray:
        """Of all leaves together."""
        return np.sqrt(sum(one**2 for one in self.trace.distance.values()))


def train(data: Digits, name: str, steps: int, key) -> Training:
    """All data at every step, implicit decay, a constant rate: the setting of the theorem."""
    params, state, curvature = _trained(data, name, steps, start(key))
    found = logits(params, data.x_held).argmax(1) == data.label_held
    return Training(lyapunov_trace(state), params, np.asarray(curvature), float(found.mean()))


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _trained(data: Digits, name: str, steps: int, params):
    k, decay = GEOMETRIES[name]
    rule = monitor_lion_k(lion_k(SHRINK / decay, k, weight_decay=decay, implicit=True), every=1, keep=steps)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, data.x, data.label)
        updates, state = rule.update(grads, state, params, value=value)
        new = optax.apply_updates(params, updates)
        return (new, state), loss(new, data.x, data.label) - value - optax.tree.vdot(grads, updates)

    (params, state), curvature = jax.lax.scan(step, (params, rule.init(params)), length=steps)
    return params, state, curvature


def against_lion(data: Digits, steps: int, params) -> float:
    """Largest difference of two networks that `optax.lion` and our K = l1 have trained: the same program, or not."""
    one, other = (_moved(data, rule, steps, params) for rule in (lion_k(0.003, L1(), weight_decay=5.0), OPTAX_LION))
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


OPTAX_LION = optax.lion(0.003, weight_decay=5.0)


@functools.partial(jax.jit, static_argnames=("rule", "steps"))
def _moved(data: Digits, rule: optax.GradientTransformation, steps: int, params):
    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(loss)(params, data.x, data.label), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, rule.init(params)), length=steps)[0][0]


@functools.partial(jax.jit, static_argnames="steps")
def against_muon(data: Digits, steps: int, params) -> Array:
    """Largest relative difference of directions while Muon, without look-ahead, moves the first weights: b1 = b2."""
    muon = optax.contrib.scale_by_muon(beta=0.95, nesterov=False)
    ours = scale_by_lion_k(Nuclear(steps=5), 0.95, 0.95)

    def step(carry, _):
        weight, state, other = carry
        grads = jax.grad(loss)({**params, "in": weight}, data.x, data.label)["in"]
        direction, state = ours.update(grads, state)
        truth, other = muon.update(grads, other)
        direction, truth = jnp.asarray(direction), jnp.asarray(truth)
        apart = jnp.linalg.norm(direction - truth) / jnp.linalg.norm(truth)
        return (weight - 0.02 * truth, state, other), apart

    begun = params["in"], ours.init(params["in"]), muon.init(params["in"])
    return jax.lax.scan(step, begun, length=steps)[1].max()
