"""An adaptive ODE beside torchdiffeq: Dormand-Prince, tolerances 1e-5, a tanh network 2-64-2, 256 states as one."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchdiffeq import odeint

from benchmarks.harness import Row, compare
from benchmarks.networks import Field, in_jax, in_torch, weights
from kinema.motion import FunctionLaw, integrate

SPAN, TOLERANCE = (0.0, 5.0), 1e-5


def run(seconds: float = 3.0) -> list[Row]:
    numbers = weights((2, 64, 2))
    law, net = FunctionLaw(in_jax(Field, numbers)), in_torch(numbers, torch.nn.Tanh)
    start = np.random.default_rng(1).normal(size=(256, 2)).astype(np.float32)
    x, ts = jnp.asarray(start), jnp.asarray(SPAN)
    options = {"rtol": TOLERANCE, "atol": TOLERANCE}

    def solve(x):
        return integrate(law, x, ts, method="dopri5", **options).states[-1]

    compiled = jax.jit(solve)

    @torch.inference_mode()
    def theirs():
        return odeint(lambda t, x: net(x), torch.tensor(start), torch.tensor(SPAN), method="dopri5", **options)[
            -1
        ].numpy()

    return [
        compare(f"dopri5 256 states{name}", "torchdiffeq", ours, theirs, target=target, seconds=seconds)
        for name, ours, target in (
            ("", lambda: np.asarray(compiled(x)), 30),
            (", not in a jit", lambda: np.asarray(solve(x)), 1),
        )
    ]
