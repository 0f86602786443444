"""Norms as K: of a leaf, of its rows, of its singular values. Each bounds its dual norm by 1/λ."""

from typing import ClassVar

import jax.numpy as jnp

from kinema.errors import InputError
from kinema.learn.optim.convex_base import Convex, norm, wide


class L2(Convex):
    """K = |m|_2 of the whole leaf, ∇K = m / |m|, K* = 0 where |x|_2 <= 1: normalised steps, a bound on the norm."""

    def value(self, m):
        return norm(wide(m))

    def grad(self, m):
        return _unit(m, None)

    def conjugate(self, x):
        return jnp.zeros((), wide(x).dtype)

    def project(self, x):
        return _into_ball(x, None)


class GroupL2(Convex):
    """K = Σ |m_i|_2 over groups, ∇K = m_i / |m_i|, K* = 0 where every |x_i|_2 <= 1: a bound on every row.

    A group runs along `axis`: -1 gives the rows of a matrix (the incoming weights of each unit of a linear layer).
    """

    least_ndim: ClassVar[int] = 2
    axis: int = -1

    def value(self, m):
        return jnp.sum(norm(wide(m), self.axis))

    def grad(self, m):
        return _unit(m, self.axis)

    def conjugate(self, x):
        return jnp.zeros((), wide(x).dtype)

    def project(self, x):
        return _into_ball(x, self.axis)

    def unfit(self, shape):
        short = super().unfit(shape)
        if short or -len(shape) <= self.axis < len(shape):
            return short
        return f"GroupL2(axis={self.axis}) needs that axis, the leaf has {len(shape)}"


class Nuclear(Convex):
    """K = sum of singular values, ∇K = U Vᵀ, K* = 0 where the spectral norm is <= 1: the geometry of Muon.

    A leaf of more than two axes is the matrix (first axis, all others). `steps` None takes the singular value
    decomposition; a number that many of Muon's quintic Newton-Schulz steps, which are quick on accelerators and leave
    the singular values of ∇K between 0.68 and 1.14 only, so that the bound is met as roughly.

    Raises:
        InputError: steps below 1.

    Reference: Jordan et al. 2024, *Muon: an optimizer for hidden layers in neural networks*.
    """

    least_ndim: ClassVar[int] = 2
    steps: int | None = None

    def __check_init__(self):
        if self.steps is not None and self.steps < 1:
            raise InputError(f"Nuclear needs steps >= 1 or None, got {self.steps}")

    def value(self, m):
        return jnp.sum(jnp.linalg.svd(_matrix(wide(m)), compute_uv=False))

    def grad(self, m):
        if self.steps is not None:
            return _newton_schulz(_matrix(m), self.steps).reshape(m.shape)
        u, s, vt = jnp.linalg.svd(_matrix(wide(m)), full_matrices=False)
        kept = s > s[0] * max(u.shape[0], vt.shape[1]) * jnp.finfo(s.dtype).eps
        return ((u * kept) @ vt).reshape(m.shape).astype(m.dtype)

    def conjugate(self, x):
        return jnp.zeros((), wide(x).dtype)

    def project(self, x):
        u, s, vt = jnp.linalg.svd(_matrix(wide(x)), full_matrices=False)
        return ((u * jnp.minimum(s, 1)) @ vt).reshape(x.shape).astype(x.dtype)


def _unit(m, axis):
    """m / |m|, 0 at 0; scaled first, so that no square leaves the range of the dtype."""
    full = wide(m)
    top = jnp.max(jnp.abs(full), axis, keepdims=True)
    part = full / jnp.where(top > 0, top, 1)
    size = jnp.sqrt(jnp.sum(part**2, axis, keepdims=True))
    return (part / jnp.where(size > 0, size, 1)).astype(m.dtype)


def _into_ball(x, axis):
    full = wide(x)
    return (full / jnp.maximum(jnp.sqrt(jnp.sum(full**2, axis, keepdims=True)), 1)).astype(x.dtype)


def _matrix(m):
    return m.reshape(m.shape[0], -1)


_QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at 0, values near 1 stay near 1


def _newton_schulz(m, steps: int):
    """x <- a x + b (x xᵀ) x + c (x xᵀ)² x, from a matrix of Frobenius norm 1."""
    a, b, c = _QUINTIC
    tall = m.shape[0] > m.shape[1]
    x = m.T if tall else m
    x = x / (jnp.linalg.norm(x) + 1e-8)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
