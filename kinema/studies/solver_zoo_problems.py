"""What the solvers are tried on: three generators in closed form and a network that has learnt digits."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from kinema.generate import VP, Guided, Linear, MixturePosterior, sample
from kinema.generate.alike import bind_alike
from kinema.generate.candidates import zoo
from kinema.generate.generator import AbstractGenerator
from kinema.generate.pilot import distances, fine_rows, rms
from kinema.generate.rows import Rows
from kinema.generate.solver import Plan
from kinema.studies import ghvb_problems
from kinema.studies.dpm_solver_v3_digits import PIXELS, Blurred, perceptron, scaled_digits

DIM = 16
MIXTURE, GUIDED, POINTS, DIGITS = "mixture", "guided mixture", "digits as points", "digits, trained network"


class Problem(NamedTuple):
    """A generator, the length of one sample, the conditions of n starts, and by how many starts are divided where each
    is dear."""

    gen: AbstractGenerator
    dim: int
    cond: Callable[[int], Array | None] = lambda n: None
    dear: int = 1


class Cage:
    """The zoo at any number of calls, with its rows, and the converged solution of `fine` calls; problems of one path
    and prediction share them."""

    def __init__(self, solvers: Sequence[str], fine: int):
        self.solvers, self.fine = solvers, fine
        self.known: dict[tuple, tuple[dict[str, Plan], dict[str, Rows]]] = {}
        self.converged: dict[tuple, Rows] = {}

    def __call__(self, problem: Problem, calls: int) -> tuple[dict[str, Plan], dict[str, Rows]]:
        kind = (*_kind(problem), calls)
        if kind not in self.known:
            plans = zoo(problem.gen.path, calls, solvers=self.solvers)
            self.known[kind] = plans, bind_alike(plans, problem.gen, nfe=calls)
        return self.known[kind]

    def starts(self, problem: Problem, n: int, parts: int, key) -> "Starts":
        """Parts of n starts, carried to the end by the converged solution."""
        kind, keys = _kind(problem), jr.split(key, parts)
        if kind not in self.converged:
            self.converged[kind] = fine_rows(problem.gen, self.fine)["whole"]
        options = {"shape": (problem.dim,), "cond": problem.cond(n)}
        ends = [sample(problem.gen, self.converged[kind], n, key=one, **options).x for one in keys]
        return Starts(problem, n, keys, ends)


def _kind(problem: Problem) -> tuple:
    return type(problem.gen.path), problem.gen.predicts


def problems(
    key, *, std: float = 0.25, scale: float = 7.5, blur: float = 0.1, table: bool = False
) -> dict[str, Problem]:
    """The three in closed form: a mixture, one under guidance, and digits as points on a flow-matching path.

    `table` puts guidance on the schedule of latent text-to-image models, where few starts rule the error.
    """
    key_means, key_guided, key_points = jr.split(key, 3)
    guided, _, _ = ghvb_problems.guided_mixture(1, key_guided)
    if not table:
        guided = eqx.tree_at(lambda gen: (gen.path, gen.mixture.path), guided, (VP(), VP()))
    rows = np.asarray(jr.permutation(key_points, 1797))[:32]
    return {
        MIXTURE: Problem(MixturePosterior(VP(), jr.normal(key_means, (8, DIM)), std**2), DIM),
        GUIDED: Problem(Guided(guided, ghvb_problems.NO_CLASS, scale), DIM, lambda n: jnp.arange(n) % 4),
        POINTS: Problem(Blurred(path=Linear(), points=jnp.asarray(scaled_digits()[rows]), blur=blur), PIXELS, dear=4),
    }


def learnt_digits(training: tuple[int, int, int], key) -> Problem:
    """The perceptron, and as a problem of few starts, since it is dear to call."""
    gen = perceptron(VP(), "data", training, scaled_digits(), *jr.split(key))
    return Problem(gen, PIXELS, dear=4)


class Starts(NamedTuple):
    """Parts of n starts of a problem, a key for each, and where the converged solution takes them."""

    problem: Problem
    n: int
    keys: Array
    truths: list[Array]

    def errors(self, rows: Mapping[str, Rows]) -> dict[str, float]:
        """Root mean square distance to the converged solution."""
        options = {"shape": (self.problem.dim,), "cond": self.problem.cond(self.n)}
        each = [
            distances(self.problem.gen, rows, truth, key=key, **options) for key, truth in zip(self.keys, self.truths)
        ]
        return {name: rms(np.concatenate([one[name] for one in each])) for name in rows}
