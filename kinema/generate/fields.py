"""The fields of a path and the affine maps between them.

With m = E[x1 | x] the *data*, e = E[z | x] the *noise* and o = E[x0 | x] the origin's prediction, x = a m + b o + s e
and the *velocity* is a' m + b' o + s' e. Where the origin is known, one field of y = x - b x0 = a m + s e fixes the
others; where it is a random endpoint two are needed. For normal noise the *score* is -e / s. Every field is then P y +
Q f for predictions f of others, with P and Q functions of time alone; solvers fuse them in float64.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from kinema.errors import InputError, unknown

FIELDS = ("data", "noise", "velocity", "score")
PREDICTS = (*FIELDS, "residual")
PAIRS = (("data", "score"), ("transport", "noise"), ("velocity", "noise"), ("data", "noise"))


class Moments(NamedTuple):
    """Coefficients of a path at one time (or an array of times)."""

    a: Any
    b: Any
    s: Any
    da: Any
    db: Any
    s_ds: Any

    @classmethod
    def at(cls, path, t) -> "Moments":
        a, b, s = path.coefficients(t)
        da, db, _ = path.rates(t)
        return cls(a, b, s, da, db, path.s_ds(t))


class Heads(NamedTuple):
    """Two outputs of one network, each like x."""

    first: PyTree
    second: PyTree


class Affine(NamedTuple):
    """field = P y + Q f, with y = x - b x0; for a pair of predictions Q is a pair as well."""

    P: Any
    Q: Any

    def __call__(self, y: PyTree, f: PyTree) -> PyTree:
        if isinstance(f, Heads):
            return jax.tree.map(lambda x, p, q: self.P * x + self.Q[0] * p + self.Q[1] * q, y, *f)
        return jax.tree.map(lambda state, field: self.P * state + self.Q * field, y, f)


class Prediction(NamedTuple):
    """What a Generator says at (t, x): each field has the structure of x. A field it does not have is None."""

    data: PyTree[Array] | None
    noise: PyTree[Array] | None
    velocity: PyTree[Array] | None
    score: PyTree[Array] | None


def published(predicts: str | tuple[str, str], path) -> frozenset[str]:
    """The fields that a generator with these outputs has on a path."""
    heads = {predicts} if isinstance(predicts, str) else set(predicts)
    if path.origin == "endpoint" and len(heads) == 1:
        return frozenset({"noise", "score"} if heads <= {"noise", "score"} else heads & set(FIELDS))
    if path.noise.gaussian or "score" in heads:
        return frozenset(FIELDS)
    return frozenset(FIELDS) - {"score"}


def convert(known: str | tuple[str, str], wanted: str, moments: Moments, sigma_data: float = 1.0) -> Affine:
    """The map from a prediction of the field `known`, or of a pair of fields, to the field `wanted`.

    `known` may also be "residual", the preconditioned output of Karras et al. (2022) for data of standard deviation
    `sigma_data`. The first of a pair ("data", "score") gives every field but the score. Other pairs are those of a
    random endpoint, where y is x itself; "transport" is the velocity without the noise, a' m + b' o. Velocities leave
    out b' x0.

    Raises:
        InputError: a name that is not a field, or a pair that is not in `PAIRS`.
    """
    if wanted not in FIELDS:
        raise InputError(unknown("field", wanted, FIELDS))
    if not isinstance(known, str):
        return _from_pair(known, wanted, moments)
    if known not in PREDICTS:
        raise InputError(unknown("prediction", known, PREDICTS))
    a, _, s, da, _, s_ds = moments
    one, zero = a * 0 + 1, a * 0
    if known == wanted:
        return Affine(zero, one)
    if wanted == "data":
        if known == "noise":
            return Affine(1 / a, -s / a)
        if known == "score":
            return Affine(1 / a, s**2 / a)
        if known == "velocity":
            return Affine(s_ds / (a * s_ds - s**2 * da), -(s**2) / (a * s_ds - s**2 * da))
        variance = s**2 + (a * sigma_data) ** 2
        return Affine(a * sigma_data**2 / variance, s * sigma_data / variance**0.5)
    if wanted == "noise":
        if known == "data":
            return Affine(1 / s, -a / s)
        if known == "score":
            return Affine(zero, -s)
        if known == "velocity":
            return Affine(-s * da / (a * s_ds - s**2 * da), a * s / (a * s_ds - s**2 * da))
        variance = s**2 + (a * sigma_data) ** 2
        return Affine(s / variance, -a * sigma_data / variance**0.5)
    if wanted == "score":
        noise = convert(known, "noise", moments, sigma_data)
        return Affine(-noise.P / s, -noise.Q / s)
    if known == "noise":
        return Affine(da / a, (s_ds - s**2 * da / a) / s)
    if known == "score":
        return Affine(da / a, s**2 * da / a - s_ds)
    if known == "data":
        return Affine(s_ds / s**2, da - a * s_ds / s**2)
    variance = s**2 + (a * sigma_data) ** 2
    return Affine((s_ds + a * da * sigma_data**2) / variance, (da * s - a * s_ds / s) * sigma_data / variance**0.5)


def _from_pair(known: tuple[str, str], wanted: str, moments: Moments) -> Affine:
    if tuple(known) not in PAIRS:
        raise InputError(f"a pair of predictions must be one of {PAIRS}, got {tuple(known)}")
    a, b, s, da, db, s_ds = moments
    one, zero = a * 0 + 1, a * 0
    first, second = known
    if second == "score":
        if wanted == "score":
            return Affine(zero, (zero, one))
        data = convert(first, wanted, moments)
        return Affine(data.P, (data.Q, zero))
    if wanted == "noise":
        return Affine(zero, (zero, one))
    if wanted == "score":
        return Affine(zero, (zero, -1 / s))
    if wanted == first:
        return Affine(zero, (one, zero))
    if wanted == "velocity" and first == "transport":
        return Affine(zero, (one, s_ds / s))
    if wanted == "velocity":
        return Affine(db / b, (da - a * db / b, (s_ds - s**2 * db / b) / s))
    # The rest of x and of the velocity, two equations for m and o
    det = a * db - b * da
    share = -s * db / det if first == "transport" else (b * s_ds - s**2 * db) / (s * det)
    return Affine(db / det, (-b / det, share))
