"""What Gumbel noise of few bits does to a categorical law, exactly, and how varied drawn sequences are.

Noise that cannot exceed M favours likely classes. With probabilities sorted upward, pi_0 = 0, S_i = pi_i + .. + pi_K
and a = e^-M, class n is drawn with probability

    pi_n sum_{i <= n} beta_i,    beta_i = e^{(K - i + 1) a} (e^{-S_i a / pi_i} - e^{-S_i a / pi_{i-1}}) / S_i .

Reference: Zheng et al. 2024, arXiv 2409.02908.
"""

import math

import numpy as np
from jaxtyping import Float, Int, Real

from kinema.errors import InputError


def largest_gumbel(bits: int) -> float:
    """The largest Gumbel number from a uniform number of `bits` bits.

    JAX draws 23 bits in float32, 10 in float16 and 7 in bfloat16; PyTorch 24, 11 and 8.

    >>> round(largest_gumbel(23), 2)
    15.94

    Raises:
        InputError: bits not in 1 .. 52.
    """
    if not 1 <= bits <= 52:
        raise InputError(f"bits must be in 1..52, got {bits}")
    return -math.log(-math.log1p(-(2.0**-bits)))


def truncated_law(p: Real[np.ndarray, " classes"], largest: float) -> Float[np.ndarray, " classes"]:
    """The law that is drawn from `p` with Gumbel noise that is never above `largest`.

    >>> truncated_law(np.array([0.999, 0.001]), 3.0).round(4).tolist()
    [1.0, 0.0]

    Raises:
        InputError: p is not a law.
    """
    p = _law(p)
    order = np.argsort(p)
    drawn = np.empty_like(p)
    drawn[order] = _drawn(p[order], largest)
    return drawn


def one_stage_law(p: Real[np.ndarray, " classes"], steps: int, largest: float) -> Float[np.ndarray, " classes"]:
    """The law of a variable after `steps` ancestral steps that draw its category and staying masked at once.

    As published samplers do, on a linear path, with a network that always predicts `p`: with n steps to go the draw is
    among p / n and 1 - 1 / n. With noise that is not bounded it is p.

    Raises:
        InputError: p is not a law, steps < 1.
    """
    p = _law(p)
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    order = np.argsort(p)
    total, masked = np.zeros_like(p), 1.0
    for left in range(steps, 1, -1):
        # no category is likelier than staying masked, so the order stands
        drawn = _drawn(np.append(p[order] / left, 1 - 1 / left), largest)
        total[order] += masked * drawn[:-1]
        masked *= drawn[-1]
    total += masked * truncated_law(p, largest)
    return total / total.sum()


def effective_temperature(p: Real[np.ndarray, " classes"], q: Real[np.ndarray, "..."]) -> float:
    """The T at which p^(1 / T), normalised, is closest to q, a law or counts: the estimate of maximum likelihood.

    There the mean of log p is that of q. Between 0.01 and 100.

    >>> p = np.array([0.7, 0.2, 0.1])
    >>> round(effective_temperature(p, p**2 / (p**2).sum()), 6)
    0.5

    Raises:
        InputError: p is not a law or uniform, q is of another shape, negative, or not 0 where p is.
    """
    p, q = _law(p), np.asarray(q, np.float64)
    if q.shape != p.shape or q.min() < 0 or not q.sum() > 0 or q[p == 0].any():
        raise InputError(
            f"q must be {len(p)} numbers, none negative and not all zero, 0 where p is, got shape {q.shape}"
        )
    log_p, q = np.log(p[p > 0]), q[p > 0] / q.sum()
    if np.ptp(log_p) == 0:
        raise InputError("p is uniform, which is the same at all temperatures")
    wanted, low, high = q @ log_p, math.log(0.01), math.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        tempered = np.exp((log_p - log_p.max()) / math.exp(middle))
        if tempered @ log_p / tempered.sum() > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def entropy(p: Real[np.ndarray, " classes"]) -> float:
    """-sum p log p, nats."""
    p = np.asarray(p, np.float64)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def unigram_entropy(x: Int[np.ndarray, "n length"]) -> float:
    """Entropy of the categories within a sequence, nats, a mean over sequences.

    Low where sequences repeat themselves. A likelihood of samples means little without it.

    >>> round(unigram_entropy(np.array([[0, 0, 1, 1], [2, 2, 2, 2]])), 4)
    0.3466
    """
    x = np.sort(np.asarray(x), 1)
    return float(np.mean([entropy(np.unique(row, return_counts=True)[1] / x.shape[1]) for row in x]))


def distinct_share(x: Int[np.ndarray, "n length"], size: int = 2) -> float:
    """How many of all runs of `size` neighbours differ from one another, as a share of their number.

    >>> distinct_share(np.array([[0, 1, 0, 1]]))
    0.6666666666666666

    Raises:
        InputError: size not in 1 .. length.
    """
    x = np.asarray(x)
    if not 1 <= size <= x.shape[1]:
        raise InputError(f"size must be in 1..{x.shape[1]}, got {size}")
    runs = np.lib.stride_tricks.sliding_window_view(x, size, 1).reshape(-1, size)
    return len(np.unique(runs, axis=0)) / len(runs)


def _drawn(up: Float[np.ndarray, " classes"], largest: float) -> Float[np.ndarray, " classes"]:
    """`truncated_law` of probabilities that are sorted upward."""
    from_here, a = up[::-1].cumsum()[::-1], math.exp(-largest)
    with np.errstate(divide="ignore", under="ignore"):
        late = np.exp(-a * from_here / up)
        early = np.exp(-a * from_here[1:] / up[:-1])
    late[1:] -= early
    return up * np.cumsum(np.exp(np.arange(len(up), 0, -1) * a) * late / from_here)


def _law(p) -> Float[np.ndarray, " classes"]:
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not len(p) or not (p >= 0).all() or abs(p.sum() - 1) > 1e-4:
        raise InputError(f"p must be one row of probabilities with sum 1, got shape {p.shape} with sum {p.sum():.6g}")
    return p / p.sum()
