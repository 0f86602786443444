"""A step of every optimizer of `kinema.learn.optim` beside one of `optax.adamw`, in float32.

Two kinds of step on square layers of 1 and 50 million numbers: the update alone (moments, direction, new weights in the
buffers of the old ones), which is bound by memory, and the step of a perceptron with its gradient at a batch of 64 or,
for the larger network, 16. AdamW reads and writes 7 numbers a parameter, AdamP 10, Adan 11, Lion 5: of the update alone
no code can make these as fast. AdamP is compared with the `adamp` package first, where that is installed: 200 steps in
float64 from the same gradients.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Row, compare
from kinema.learn.optim import ALL_OPTIMIZERS, adamp, sgdp

SIZES = {"1M": (4, 500, 64), "50M": (12, 2040, 16)}  # layers, width, batch
ALLOWED = 1 / 1.15  # of the speed of AdamW


def run(seconds: float = 3.0) -> list[Row]:
    if importlib.util.find_spec("adamp"):
        agree()
    rows = []
    for size, (layers, width, batch_size) in SIZES.items():
        weights = [jnp.asarray(w) for w in _normal((layers, width, width)) / width**0.5]
        x = jnp.asarray(_normal((batch_size, width)))
        for kind, batch in {"update": None, "step": x}.items():
            for name, build in ALL_OPTIMIZERS.items():
                sides = [step(rule, weights, batch) for rule in (build(1e-3), optax.adamw(1e-3))]
                case = f"{name}, {kind} of {size}"
                rows.append(compare(case, "adamw", *sides, target=ALLOWED, seconds=seconds, tolerance=None, least=7))
    return rows


def step(rule: optax.GradientTransformation, weights: list[jax.Array], x: jax.Array | None):
    """A call that makes one step and gives a number of it; without `x` the gradient stays the same."""

    def loss(weights):
        h = x
        for w in weights:
            h = jax.nn.relu(h @ w.T)
        return jnp.mean(h**2)

    def go(carry, fixed):
        weights, state = carry
        grads = fixed if x is None else jax.grad(loss)(weights)
        updates, state = rule.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    compiled = jax.jit(go, donate_argnums=0)
    own = [jnp.array(w) for w in weights]
    held = [(own, rule.init(own))]

    def call() -> np.ndarray:
        held[0] = jax.block_until_ready(compiled(held[0], weights))
        return np.asarray(held[0][0][0][0, 0])

    return call


def agree() -> None:
    """AdamP and SGDP end where those of the `adamp` package do, to 1e-12.

    SGDP with Nesterov momentum alone: without it the package projects what it stores, and the paper does not.
    """
    import adamp as package
    import torch

    start, noise = np.random.default_rng(0).normal(size=(8, 12)), np.random.default_rng(1).normal(size=(200, 8, 12))
    options = {"weight_decay": 0.1, "nesterov": True}
    pairs = {
        "AdamP": (adamp(0.01, **options), lambda params: package.AdamP(params, lr=0.01, **options)),
        "SGDP": (sgdp(0.01, **options), lambda params: package.SGDP(params, lr=0.01, momentum=0.9, **options)),
    }

    def tangent(w, g):
        return g - w * (g * w).sum(1)[:, None] / (w * w).sum(1)[:, None]

    for name, (rule, build) in pairs.items():
        theirs = torch.tensor(start, requires_grad=True)
        optimizer = build([theirs])
        for g in noise:
            theirs.grad = tangent(theirs.detach(), torch.tensor(g))
            optimizer.step()
        with jax.enable_x64(True):
            ours = jnp.asarray(start)
            state, update = rule.init(ours), jax.jit(rule.update)
            for g in noise:
                updates, state = update(tangent(ours, g), state, ours)
                ours = optax.apply_updates(ours, updates)
            apart = float(np.abs(np.asarray(ours) - theirs.detach().numpy()).max())
        if not apart <= 1e-12:
            raise AssertionError(f"Kinema's {name} and that of the adamp package differ by {apart:.2g}")
        print(f"{name} and the adamp package are {apart:.0e} apart after 200 steps in float64", flush=True)


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
