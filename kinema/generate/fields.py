"""The four fields of a path and the affine maps between them.

With y = x - b x0 = a m + s e, where m = E[x1 | x] is the *data* and e = E[z | x] the *noise* prediction, knowing one
field fixes the others: velocity = a' m + s' e (plus b' x0) and, for normal noise, score = -e / s. Every field is then
P y + Q f for a prediction f of another, with P and Q functions of time alone; solvers fuse them in float64.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from kinema.errors import InputError, unknown

FIELDS = ("data", "noise", "velocity", "score")
PREDICTS = (*FIELDS, "residual")


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


class Affine(NamedTuple):
    """field = P y + Q f, with y = x - b x0."""

    P: Any
    Q: Any

    def __call__(self, y: PyTree, f: PyTree) -> PyTree:
        return jax.tree.map(lambda state, field: self.P * state + self.Q * field, y, f)


def convert(known: str, wanted: str, moments: Moments, sigma_data: float = 1.0) -> Affine:
    """The map from a prediction of the field `known` to the field `wanted`.

    `known` may also be "residual", the preconditioned output of Karras et al. (2022) for data of standard deviation
    `sigma_data`. Velocities leave out b' x0.

    Raises:
        InputError: a name that is not a field.
    """
    if known not in PREDICTS:
        raise InputError(unknown("prediction", known, PREDICTS))
    if wanted not in FIELDS:
        raise InputError(unknown("field", wanted, FIELDS))
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


class Prediction(NamedTuple):
    """What a Generator says at (t, x): each field has the structure of x. A field it does not have is None."""

    data: PyTree[Array] | None
    noise: PyTree[Array] | None
    velocity: PyTree[Array] | None
    score: PyTree[Array] | None
