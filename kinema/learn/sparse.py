"""Formulas from data: few terms of a library, chosen by backward elimination; no formula language, no Julia.

All terms are fitted by least squares; the term whose loss is missed least goes, and so on to none. Each number of terms
has a best loss, and the formula kept is the one before which the loss falls most (largest -d log loss / d terms).

[Brunton, Proctor & Kutz 2016 (sparse identification); Boninsegna, Nüske & Clementi 2018 (elimination)]
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from kinema.errors import InputError

_FLOOR = 1e-24  # of the variance: a smaller loss is rounding


class Library(eqx.Module):
    """Candidate terms: all monomials up to `degree` in the named variables, and any functions of the state.

    >>> terms = Library(("x", "y"), degree=2, functions={"sin x": lambda x: jnp.sin(x[0])})
    >>> terms.names
    ('1', 'x', 'y', 'x²', 'x y', 'y²', 'sin x')
    >>> [round(value, 2) for value in terms(jnp.array([2.0, 3.0])).tolist()]
    [1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 0.91]

    Raises:
        InputError: no variables, a name twice, a negative degree, x of another shape.
    """

    variables: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    degree: int = eqx.field(static=True, default=2)
    functions: tuple[tuple[str, Callable], ...] = eqx.field(static=True, default=(), converter=lambda f: _items(f))

    def __check_init__(self):
        if not self.variables or self.degree < 0:
            raise InputError(f"a library needs variables and a degree >= 0, got {self.variables}, {self.degree}")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"every term needs a name of its own, got {', '.join(self.names)}")

    @property
    def powers(self) -> tuple[tuple[int, ...], ...]:
        """Exponents of the monomials, by degree."""
        d = len(self.variables)
        picks = (pick for k in range(self.degree + 1) for pick in itertools.combinations_with_replacement(range(d), k))
        return tuple(tuple(pick.count(i) for i in range(d)) for pick in picks)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return (*(_monomial(self.variables, powers) for powers in self.powers), *(name for name, _ in self.functions))

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " terms"]:
        if x.shape != (len(self.variables),):
            raise InputError(f"x must have shape ({len(self.variables)},), got {x.shape}; use jax.vmap for a batch")
        values = []
        for powers in self.powers:
            factors = [lax.integer_pow(x[i], power) for i, power in enumerate(powers) if power]
            values.append(jnp.prod(jnp.stack(factors)) if factors else jnp.ones((), x.dtype))
        return jnp.stack([*values, *(jnp.asarray(f(x), x.dtype) for _, f in self.functions)])


class Formula(eqx.Module):
    """y = coefficients · terms(x) on the chosen terms; a field like any other, so its coefficients may learn further.

    `coefficients` (terms, outputs); `chosen` says which count.
    """

    library: Library
    coefficients: Float[Array, "terms outputs"]
    chosen: Bool[Array, "terms outputs"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " outputs"]:
        return self.library(x) @ jnp.where(self.chosen, self.coefficients, 0)

    @property
    def terms(self) -> tuple[dict[str, float], ...]:
        """For each output its terms by name with their coefficients."""
        values, chosen, names = np.asarray(self.coefficients), np.asarray(self.chosen), self.library.names
        return tuple(
            {name: float(value) for name, value, kept in zip(names, values[:, k], chosen[:, k]) if kept}
            for k in range(values.shape[1])
        )

    def equations(self, digits: int = 3) -> tuple[str, ...]:
        """Each output in words, as "0.8 x y - 1.3 x"."""
        return tuple(_sum(terms, digits) for terms in self.terms)


@dataclasses.dataclass(frozen=True)
class Front:
    """Formulas by number of terms, one front an output: `losses[k][n]` is the mean square error with n terms.

    `best` has for every output the number of terms before which the loss falls most.
    """

    library: Library
    losses: tuple[np.ndarray, ...]
    solutions: tuple[tuple[np.ndarray, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of terms chosen for each output."""
        return tuple(_fall(losses) for losses in self.losses)

    @property
    def best(self) -> Formula:
        return self.formula(self.sizes)

    def formula(self, sizes: Sequence[int]) -> Formula:
        """The formula with the given number of terms for each output.

        Raises:
            InputError: a number of terms that is not on the front.
        """
        if len(sizes) != len(self.losses) or not all(0 <= n < len(one) for n, one in zip(sizes, self.losses)):
            raise InputError(f"sizes must be {len(self.losses)} numbers of terms within the front, got {tuple(sizes)}")
        columns = np.stack([solutions[n] for n, solutions in zip(sizes, self.solutions)], 1)
        return Formula(self.library, jnp.asarray(columns, float), jnp.asarray(columns != 0))


def discover(states: Any, rates: Any | Callable, library: Library, *, max_terms: int = 8) -> Front:
    """Formulas for `rates` (n, outputs), or for what the field `rates` gives, at `states` (n, d).

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> front = discover(x, lambda x: jnp.array([-0.9 * x[0] * x[1], 0.5 + 2.0 * x[1]]), Library(("x", "y"), 3))
    >>> front.best.equations(2)
    ('-0.9 x y', '2 y + 0.5')

    Smooth rates are needed: a trained field, or derivatives of a smoothing spline. `max_terms` bounds the front.

    Raises:
        InputError: shapes that do not fit, fewer states than terms, values that are not finite.
    """
    states = jnp.asarray(states, float)
    if states.ndim != 2 or states.shape[1] != len(library.variables):
        raise InputError(f"states must have shape (n, {len(library.variables)}), got {states.shape}")
    targets = np.asarray(jax.vmap(rates)(states) if callable(rates) else rates, np.float64)
    features = np.asarray(jax.vmap(library)(states), np.float64)
    if targets.ndim != 2 or len(targets) != len(features):
        raise InputError(f"rates must have shape ({len(features)}, outputs), got {targets.shape}")
    if len(features) < features.shape[1]:
        raise InputError(f"{features.shape[1]} terms need at least as many states, got {len(features)}")
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise InputError("states, rates and all terms at the states must be finite")
    if max_terms < 1:
        raise InputError(f"max_terms must be at least 1, got {max_terms}")
    paths = [_eliminate(features, target, max_terms) for target in targets.T]
    return Front(library, tuple(losses for losses, _ in paths), tuple(solutions for _, solutions in paths))


def _eliminate(features, target, most):
    """Losses and coefficients with 0, 1, ..., `most` terms."""
    sizes = np.linalg.norm(features, axis=0)
    sizes[sizes == 0] = 1
    scaled, kept = features / sizes, list(range(features.shape[1]))
    losses, solutions = [], []
    while True:
        weights = np.zeros(features.shape[1])
        q, r = np.linalg.qr(scaled[:, kept])
        part = np.linalg.lstsq(r, q.T @ target, rcond=1e-12)[0] if kept else np.zeros(0)
        weights[kept] = part
        if len(kept) <= most:
            losses.append(np.mean((target - scaled @ weights) ** 2))
            solutions.append(weights / sizes)
        if not kept:
            return np.array(losses[::-1]), tuple(solutions[::-1])
        # Leaving out term j raises the loss by part_j² / (inverse Gram matrix)_jj.
        inverse = np.linalg.pinv(r.T @ r)
        kept.pop(int(np.argmin(part**2 / np.maximum(np.diag(inverse), 1e-300))))


def _fall(losses: np.ndarray) -> int:
    """The number of terms before which log loss falls most; 0 for a target that is zero."""
    if losses[0] == 0 or len(losses) == 1:
        return 0
    return 1 + int(np.argmax(-np.diff(np.log(np.maximum(losses, _FLOOR * losses[0])))))


def _items(functions: Mapping[str, Callable] | Sequence) -> tuple[tuple[str, Callable], ...]:
    return tuple(functions.items() if isinstance(functions, Mapping) else functions)


def _monomial(variables, powers) -> str:
    raised = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    factors = [
        name if power == 1 else name + str(power).translate(raised) for name, power in zip(variables, powers) if power
    ]
    return " ".join(factors) or "1"


def _sum(terms: Mapping[str, float], digits: int) -> str:
    text = ""
    for name, value in sorted(terms.items(), key=lambda pair: -abs(pair[1])):
        size = f"{abs(value):.{digits}g}"
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        text += sign + (size if name == "1" else f"{size} {name}")
    return text or "0"
