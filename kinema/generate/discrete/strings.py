"""Strings of letters and brackets with a wanted value, a law like those that design molecules; its evidence is known.

    log f(x) = -|sum of the letters' values - target| / temperature - penalty * (brackets without a partner)

The number of strings of each value and each number of lone brackets is counted letter by letter, not by enumeration.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kinema.errors import InputError


class Strings(eqx.Module):
    """log f of one string x `(length,)`: the categories are the letters of `values`, then "(" and ")".

    >>> law = Strings(4)
    >>> law.text(jnp.array([0, 3, 0, 4])), law(jnp.array([0, 3, 0, 4])).item()  # value 2, half the target
    ('C(C)', -2.0)

    Raises:
        InputError: no letters, values that are not whole numbers, temperature or length not positive, penalty negative.
    """

    length: int = eqx.field(static=True)
    target: int = eqx.field(static=True)
    letters: str = eqx.field(static=True)
    values: tuple[int, ...] = eqx.field(static=True)
    temperature: float
    penalty: float

    def __init__(
        self,
        length: int,
        target: int = 4,
        *,
        letters: str = "CNO",
        values: tuple[int, ...] = (1, -1, -2),
        temperature: float | int = 1.0,
        penalty: float | int = 2.0,
    ):
        if not letters or len(letters) != len(values) or any(int(value) != value for value in values):
            raise InputError(f"values must be one whole number for each letter of {letters!r}, got {values}")
        if not (length > 0 and temperature > 0 and penalty >= 0):
            raise InputError(
                "length and temperature must be positive and penalty not negative, got "
                f"length={length}, temperature={temperature}, penalty={penalty}"
            )
        self.length, self.target, self.letters, self.values = length, target, letters, values
        self.temperature, self.penalty = float(temperature), float(penalty)

    @property
    def categories(self) -> int:
        return len(self.values) + 2

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, ""]:
        return self.log_f(self.value(x), self.lone(x))

    def log_f(self, value, lone):
        """log f by value and number of lone brackets."""
        return -abs(value - self.target) / self.temperature - self.penalty * lone

    def value(self, x: Int[Array, " length"]) -> Int[Array, ""]:
        """The sum of the letters' values; brackets count nothing."""
        return jnp.asarray((*self.values, 0, 0))[x].sum()

    def lone(self, x: Int[Array, " length"]) -> Int[Array, ""]:
        """The number of brackets without a partner."""
        opens, closes = len(self.values), len(self.values) + 1

        def step(carry, letter):
            depth, lone = carry
            unmatched = (letter == closes) & (depth == 0)
            depth = depth + (letter == opens) - ((letter == closes) & ~unmatched)
            return (depth, lone + unmatched), None

        depth, lone = jax.lax.scan(step, (jnp.zeros((), int), jnp.zeros((), int)), x)[0]
        return depth + lone

    def text(self, x: Int[Array | np.ndarray, " length"]) -> str:
        """The string in letters."""
        return "".join(f"{self.letters}()"[letter] for letter in np.asarray(x))

    def counts(self) -> tuple[Int[np.ndarray, " values"], Float[np.ndarray, "values lone"]]:
        """The values that a string can have, and how many strings have each, by their number of lone brackets."""
        least, most = self.length * min(0, *self.values), self.length * max(0, *self.values)
        table = np.zeros((self.length + 1, self.length + 1, most - least + 1))  # depth, lone closing brackets, value
        table[0, 0, -least] = 1
        for _ in range(self.length):
            new = np.zeros_like(table)
            for value in self.values:
                new += np.roll(table, value, 2)
            new[1:] += table[:-1]
            new[:-1] += table[1:]
            new[0, 1:] += table[0, :-1]
            table = new
        by_lone = np.zeros((most - least + 1, self.length + 1))
        for depth in range(self.length + 1):
            for lone in range(self.length + 1 - depth):
                by_lone[:, depth + lone] += table[depth, lone]
        return np.arange(least, most + 1), by_lone

    def law(self) -> Float[np.ndarray, "values lone"]:
        """The probability of each value and number of lone brackets, in the order of `counts`."""
        return np.exp(self._log_masses() - self.log_evidence())

    def log_evidence(self) -> float:
        """log of the sum of f over all strings, in double precision."""
        masses = self._log_masses()
        return float(masses.max() + np.log(np.exp(masses - masses.max()).sum()))

    def _log_masses(self) -> Float[np.ndarray, "values lone"]:
        values, counts = self.counts()
        with np.errstate(divide="ignore"):
            return np.log(counts) + self.log_f(values[:, None], np.arange(self.length + 1))
