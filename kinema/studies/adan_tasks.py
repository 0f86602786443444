"""What Adan is judged on: a vision transformer and a deep autoencoder on digits, and its algorithm in plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from kinema.errors import require
from kinema.learn.optim import adan

WINDOW = 20  # steps of a running mean
WIDTH, HEADS, BLOCKS, TOKENS = 24, 4, 2, 16
TRAINED = 1500
DEEP = (64, 128, 64, 32, 8, 32, 64, 128, 64)
RULES = {
    "AdamW": lambda rate, b1, decay: optax.adamw(rate, b1, weight_decay=decay),
    "Adan": lambda rate, b1, decay: adan(rate, b1, weight_decay=decay),
}
DEFAULT_B1 = {"AdamW": 0.9, "Adan": 0.98}


def transformer(name: str, rate: float, b1: float, steps: int, seeds: tuple[int, ...], times: int = 1) -> np.ndarray:
    """Training losses (seeds, times * steps) of the vision transformer."""
    images, labels = _digits()
    patches = images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, TOKENS, 4)
    settings = jnp.asarray(rate), jnp.asarray(b1)
    return _curves(_transformer, vision_transformer, (patches, labels, *settings), name, steps, seeds, times)


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _transformer(carry, key, patches, labels, rate, b1, name, steps):
    def loss(params, rows):
        logits = logits_of(params, patches[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    return _steps(carry, key, RULES[name](rate, b1, 0.02), loss, batch=64, steps=steps)


def autoencoder(name: str, rate: float, steps: int, seeds: tuple[int, ...]) -> np.ndarray:
    """Training losses (seeds, steps) of the deep autoencoder: squared error a digit."""
    settings = _digits()[0].reshape(-1, 64), jnp.asarray(rate), jnp.asarray(DEFAULT_B1[name])
    return _curves(_autoencoder, deep_perceptron, settings, name, steps, seeds)


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _autoencoder(carry, key, x, rate, b1, name, steps):
    def loss(params, rows):
        h = x[rows]
        for k, (w, b) in enumerate(params):
            h = h @ w.T + b
            h = jnp.tanh(h) if k < len(params) - 1 else h
        return jnp.mean(jnp.sum((h - x[rows]) ** 2, 1))

    return _steps(carry, key, RULES[name](rate, b1, 0.0), loss, batch=256, steps=steps)


def _curves(task, start, settings, name, steps, seeds, times=1) -> np.ndarray:
    """Losses of a task in `times` runs of one compiled program a seed."""
    rate, b1 = settings[-2:]
    curves = []
    for seed in seeds:
        key_net, key_steps = jr.split(jr.key(seed))
        params, parts = start(key_net), []
        carry = params, RULES[name](rate, b1, 0.0).init(params)
        for k in range(times):
            carry, losses = task(carry, jr.fold_in(key_steps, k), *settings, name, steps)
            parts.append(np.asarray(losses))
        curves.append(np.concatenate(parts))
    return np.stack(curves)


def _steps(carry, key, rule, loss, *, batch: int, steps: int):
    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, jr.choice(key, TRAINED, (batch,)))
        updates, state = rule.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, carry, jr.split(key, steps))


def deep_perceptron(key) -> list[tuple[jax.Array, jax.Array]]:
    """Weights (out, in) and biases."""
    sizes = zip(DEEP[:-1], DEEP[1:], jr.split(key, len(DEEP) - 1), strict=True)
    return [(jr.normal(k, (m, n)) * n**-0.5, jnp.zeros(m)) for n, m, k in sizes]


def vision_transformer(key) -> dict:
    """Weights (out, in), gains and shifts; the blocks stacked along a first axis."""
    names = {"qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (4 * WIDTH, WIDTH), "down": (WIDTH, 4 * WIDTH)}
    keys = dict(zip((*names, "embed", "place", "head"), jr.split(key, len(names) + 3)))

    def normal(name, *shape):
        return jr.normal(keys[name], shape) * shape[-1] ** -0.5

    norm = {"gain": jnp.ones((BLOCKS, WIDTH)), "shift": jnp.zeros((BLOCKS, WIDTH))}
    return {
        "embed": normal("embed", WIDTH, 4),
        "place": 0.02 * jr.normal(keys["place"], (TOKENS, WIDTH)),
        "blocks": {
            **{name: normal(name, BLOCKS, *shape) for name, shape in names.items()},
            **{"before": norm, "between": norm, "up_bias": jnp.zeros((BLOCKS, 4 * WIDTH))},
        },
        **{"head": normal("head", 10, WIDTH), "bias": jnp.zeros(10)},
    }


def logits_of(params: dict, patches: jax.Array) -> jax.Array:
    """Logits (n, 10) of patches (n, 16, 4)."""

    def block(h, one):
        qkv = _normed(h, one["before"]) @ one["qkv"].T
        q, k, v = jnp.moveaxis(qkv.reshape(*h.shape[:2], 3, HEADS, WIDTH // HEADS), 2, 0)
        share = jax.nn.softmax(jnp.einsum("nihd,njhd->nhij", q, k) * (WIDTH // HEADS) ** -0.5)
        h = h + jnp.einsum("nhij,njhd->nihd", share, v).reshape(h.shape) @ one["out"].T
        inner = jax.nn.gelu(_normed(h, one["between"]) @ one["up"].T + one["up_bias"])
        return h + inner @ one["down"].T, None

    h, _ = jax.lax.scan(block, patches @ params["embed"].T + params["place"], params["blocks"])
    ones = {"gain": jnp.ones(WIDTH), "shift": jnp.zeros(WIDTH)}
    return _normed(h.mean(1), ones) @ params["head"].T + params["bias"]


def _normed(x, norm):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm["gain"] + norm["shift"]


def _digits() -> tuple[jax.Array, jax.Array]:
    digits = require("sklearn.datasets", "digits").load_digits()
    return jnp.asarray(digits.images, jnp.float32) / 16, jnp.asarray(digits.target)


def against_algorithm(seed: int, steps: int = 50, rate: float = 0.1) -> tuple[float, float]:
    """Largest distance of a parameter after some steps on least squares: ours and optax's from the published rule."""
    random = np.random.default_rng(seed)
    a, b, start = random.normal(size=(30, 10)), random.normal(size=30), random.normal(size=10)
    truth = algorithm(lambda x: a.T @ (a @ x - b) / 30, start, steps, rate)
    with jax.enable_x64(True):
        a, b = jnp.asarray(a), jnp.asarray(b)

        def apart(rule):
            def step(carry, _):
                x, state = carry
                updates, state = rule.update(a.T @ (a @ x - b) / 30, state, x)
                return (optax.apply_updates(x, updates), state), None

            x = jnp.asarray(start)
            (x, _), _ = jax.lax.scan(step, (x, rule.init(x)), None, steps)
            return float(np.abs(np.asarray(x) - truth).max())

        return apart(adan(rate, weight_decay=0.0)), apart(optax.adan(rate, weight_decay=0.0))


def algorithm(gradient, x: np.ndarray, steps: int, rate: float, kept=(0.98, 0.92, 0.99), eps=1e-8) -> np.ndarray:
    """The published rule without decay, in plain NumPy."""
    (b1, b2, b3), last = kept, gradient(x)
    m, v, n = np.zeros((3, *x.shape))
    for t in range(1, steps + 1):
        g = gradient(x)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - last)
        n = b3 * n + (1 - b3) * (g + b2 * (g - last)) ** 2
        x = x - rate * (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps)
        last = g
    return x
