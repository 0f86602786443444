"""200 Euler-Maruyama steps beside torchsde: tanh drift 2-64-2, 256 states, noise 0.5 in every number.

By `motion.integrate`, whose Brownian path can be asked for anywhere, and as a plain scan. The scan is first fed the
peer's increments and must return its numbers; `integrate` draws its own, so its mean and spread are compared.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch
import torchsde

from benchmarks.harness import Row, compare
from benchmarks.networks import Field, in_jax, in_torch, weights
from kinema.motion import FunctionLaw, integrate

STEPS, NOISE, COUNT = 200, 0.5, 256
DT = 1 / 256  # exact in float32, or the peer takes one more tiny step
END = STEPS * DT


def run(seconds: float = 3.0) -> list[Row]:
    numbers = weights((2, 64, 2))
    field = in_jax(Field, numbers)
    start = np.random.default_rng(1).normal(size=(COUNT, 2)).astype(np.float32)
    x = jnp.asarray(start)
    law = FunctionLaw(field, lambda t, x, args: jnp.full_like(x, NOISE))
    theirs = in_torchsde(numbers, start)

    def steps(x, noise):
        return jax.lax.scan(lambda x, dw: (x + DT * field(0.0, x) + NOISE * dw, None), x, noise)[0]

    increments = DT**0.5 * np.random.default_rng(2).normal(size=(STEPS, COUNT, 2)).astype(np.float32)
    given = theirs(lambda ta, tb: torch.tensor(increments[round(float(ta) / DT)]))
    np.testing.assert_allclose(jax.jit(steps)(x, increments), given, rtol=1e-3, atol=1e-4)

    @jax.jit
    def scan(key):
        return steps(x, DT**0.5 * jr.normal(key, (STEPS, COUNT, 2)))

    @jax.jit
    def solved(key):
        return integrate(law, x, jnp.array([0.0, END]), method="euler_maruyama", dt=DT, key=key).states[-1]

    same_law(lambda i: np.asarray(solved(jr.key(i))), lambda i: np.asarray(scan(jr.key(1000 + i))))
    rows = []
    for name, draw in (("scan", scan), ("integrate", solved)):
        ours = lambda draw=draw: np.asarray(draw(jr.key(0)))  # noqa: E731
        case = f"200 Euler-Maruyama steps, {name}"
        rows.append(compare(case, "torchsde", ours, theirs, target=15, seconds=seconds, tolerance=None))
    return rows


def same_law(one, other, repeats: int = 40) -> None:
    """Means and variances of both at every state agree within 5 standard errors of the largest of 512 gaps."""
    a, b = (np.stack([draw(i) for i in range(repeats)]) for draw in (one, other))
    gap = np.abs(a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / repeats)
    spread = float(np.mean(a.var(0)) / np.mean(b.var(0)))
    if gap.max() > 5 or abs(spread - 1) > 4 * 2 / (repeats * a[0].size) ** 0.5:
        raise AssertionError(f"integrate and scan differ: {gap.max():.1f} standard errors, variances {spread:.3f} to 1")


def in_torchsde(numbers, start: np.ndarray):
    class Sde(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self):
            super().__init__()
            self.net = in_torch(numbers, torch.nn.Tanh)

        def f(self, t, x):
            return self.net(x)

        def g(self, t, x):
            return torch.full_like(x, NOISE)

    sde, ts = Sde(), torch.tensor([0.0, END])

    @torch.inference_mode()
    def run(increments=None):
        x = torch.tensor(start)
        brownian = None if increments is None else _Given(increments, x)
        return torchsde.sdeint(sde, x, ts, dt=DT, method="euler", bm=brownian)[-1].numpy()

    return run


class _Given(torchsde.BaseBrownian):
    """A Brownian motion of given increments."""

    def __init__(self, increments, like: torch.Tensor):
        self.increments, self.like = increments, like

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return self.increments(ta, tb)

    def __repr__(self):
        return "given increments"

    dtype = property(lambda self: self.like.dtype)
    device = property(lambda self: self.like.device)
    shape = property(lambda self: self.like.shape)
    levy_area_approximation = "none"
