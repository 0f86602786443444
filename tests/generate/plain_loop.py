"""A plan run in plain NumPy: what the JAX loop and the PyTorch bridge must agree with."""

import numpy as np


def run(plan, field, x, noises=()):
    """`field(t, x) -> array` is the field that the plan extrapolates; `noises` are used up in order, one a draw."""
    noises = iter(noises)
    anchor, history = x, [np.zeros_like(x)] * plan.history
    for j in range(plan.nfe):
        if plan.n[j]:
            x = plan.r[j] * x + plan.n[j] * next(noises)
        h = plan.A[j] * x + plan.B[j] * field(plan.t[j], x) + plan.E[j] * history[0]
        history = [h, *history[:-1]]
        z = [x, anchor, *history]
        x, anchor = (sum(c * part for c, part in zip(plan.M[j, out], z)) + plan.d[j, out] for out in (0, 1))
        if plan.c[j]:
            x = x + plan.c[j] * next(noises)
        if (plan.M[j, 0] == plan.M[j, 1]).all():
            anchor = x
    return x


def mixture_data(mixture, a, s, x):
    """E[x1 | a x1 + s z = x] of a mixture of isotropic Gaussians, rows of x."""
    weights, means, variances = (np.asarray(mixture[name]) for name in ("weights", "means", "variances"))
    gap, spread = x[:, None] - a * means, a**2 * variances + s**2
    log_share = np.log(weights) - (gap**2).sum(-1) / (2 * spread) - x.shape[1] / 2 * np.log(spread)
    share = np.exp(log_share - log_share.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return np.einsum("nk,nkd->nd", share, means + (a * variances / spread)[:, None] * gap)
