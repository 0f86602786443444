"""Fitting a light bridge beside the published step in PyTorch: batch 128, 10 components, at equal steps.

The peer is the published step written anew: the mixture's terms as tensors of shape (batch, components, dim), Adam, one
minibatch after another. Fed with the same rows from the same start, both must end at the same centres first. ott-jax is
not compared: its Sinkhorn solves the discrete problem and has no law outside the samples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.harness import Row, compare
from kinema.generate.bridges import LightBridge, light_bridge_loss
from kinema.learn import BackPropagation, advance, begin
from kinema.learn.trainable import Trainable

DIMS, COMPONENTS, BATCH, STEPS, RATE, EPS, SAMPLES = (2, 16, 64), 10, 128, 100, 1e-2, 1.0, 20_000


def run(seconds: float = 3.0) -> list[Row]:
    rows = []
    for dim in DIMS:
        random = np.random.default_rng(dim)
        x0, noise = random.normal(size=(2, SAMPLES, dim)).astype(np.float32)
        modes = random.normal(size=(5, dim))
        modes = 5 * modes / np.linalg.norm(modes, axis=1, keepdims=True)
        x1 = (modes[random.integers(5, size=SAMPLES)] + noise).astype(np.float32)
        batches = random.integers(SAMPLES, size=(2, STEPS, BATCH))
        ours, theirs = in_kinema(x0, x1, batches), in_torch(x0, x1, batches)
        case = f"{STEPS} bridge steps, dim {dim}"
        rows.append(compare(case, "torch", ours, theirs, target=8, seconds=seconds))
    return rows


def in_kinema(x0: np.ndarray, x1: np.ndarray, batches: np.ndarray):
    """Centres after the steps; the loss is the one that `fit_light_bridge` uses."""
    start = LightBridge(x1[:COMPONENTS], 1.0, np.full(COMPONENTS, 1 / COMPONENTS), eps=EPS)
    params, static = Trainable(("log_weights", "centres", "log_scales")).split(start)
    optimizer, key = optax.adam(RATE), jax.random.key(0)
    source = BackPropagation(lambda model, batch, key: (light_bridge_loss(model, *batch, expand=True), {}))
    sides = jnp.asarray(x0), jnp.asarray(x1)

    @jax.jit
    def steps(rows):
        def step(state, rows):
            batch = tuple(side[of] for side, of in zip(sides, rows))
            return advance(state, static, batch, key, source=source, optimizer=optimizer, ema=None)

        return jax.lax.scan(step, begin(optimizer, params, None), rows)[0].params.centres

    rows = tuple(jnp.asarray(side) for side in batches)
    return lambda: np.asarray(steps(rows))


def in_torch(x0: np.ndarray, x1: np.ndarray, batches: np.ndarray):
    """The published step. It learns eps log a, which at eps = 1 is log a."""
    source, target = torch.tensor(x0), torch.tensor(x1)
    rows = torch.tensor(batches)

    def run():
        potentials = torch.full((COMPONENTS,), -EPS * float(np.log(COMPONENTS)), requires_grad=True)
        centres = target[:COMPONENTS].clone().requires_grad_()
        log_scales = torch.zeros_like(centres).requires_grad_()
        optimizer = torch.optim.Adam([potentials, centres, log_scales], lr=RATE)
        for of_x, of_y in zip(*rows):
            x, y = source[of_x], target[of_y]
            scales, log_weights = log_scales.exp(), potentials / EPS
            tilt = (scales * x[:, None] ** 2 + 2 * centres * x[:, None]).sum(-1) / (2 * EPS)
            parts = torch.distributions.Independent(torch.distributions.Normal(centres, (EPS * scales).sqrt()), 1)
            inside = torch.logsumexp(log_weights + parts.log_prob(y[:, None]), -1)
            loss = torch.logsumexp(log_weights + tilt, -1).mean() - inside.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return centres.detach().numpy()

    return run
