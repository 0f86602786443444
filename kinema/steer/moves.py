"""How a particle goes back: noise put in again, or the probability flow run backwards.

From a point x = a m + s e of the grid to an earlier one (a', s'), m the data prediction at x:

    renoise   x' = (a' / a) x + sqrt(s'^2 - (a' s / a)^2) z
    invert    x' = (s' / s) x + (a' - a s' / s) m

The first has the law of the path there, whatever the data. The second is the exact step of the flow for a constant
prediction, so going down again retraces it to first order in the length of a step. On a path with a known origin x and
m are centred, x - (a + b) x0 and m - x0. Either way the solver begins a new history.

Reference: Xu et al. 2023 (restart); Song et al. 2021 and Dhariwal & Nichol 2021 (DDIM inversion).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from kinema.errors import InputError, unknown
from kinema.generate.path.path import Path, in_float64
from kinema.generate.rows import Rows
from kinema.generate.sampling import SolverState
from kinema.generate.solver.plan import Plan
from kinema.steer.controller import KERNELS, Controller, Move, Particles, Scene

FAULTS = (
    "",
    "a kernel is one of the numbers of Move, 0 to 3",
    "the controller's `kernels` does not name this kernel",
    "only earlier rows that begin a whole step can be gone back to (see `scene.boundaries`)",
    "a particle inside a step must finish it before it can go back",
    "a finished particle has no prediction to invert with; renoise it",
)


class Levels(eqx.Module):
    """Coefficients (a, s) of the path before every row of a plan, and at its end: `here` for a particle that stands
    there, noise put back included, `grid` for one that arrives."""

    a_here: Float[Array, " points"]
    s_here: Float[Array, " points"]
    a_grid: Float[Array, " points"]
    s_grid: Float[Array, " points"]

    @classmethod
    def of(cls, plan: Plan, path: Path) -> "Levels":
        point = np.maximum.accumulate(np.r_[0, np.where(plan.whole, plan.after, 0)])
        a_grid, s_grid = plan.grid.a[point], plan.grid.s[point]
        lifted = np.r_[(plan.r != 1) | (plan.n != 0), False]
        a, _, s = in_float64(path.coefficients, np.r_[plan.t, 1.0])
        columns = np.where(lifted, a, a_grid), np.where(lifted, s, s_grid), a_grid, s_grid
        return cls(*(jnp.asarray(column, jnp.result_type(float)) for column in columns))

    def renoise(self, x: PyTree, z: PyTree, j, to) -> PyTree:
        """One centred particle before row j with the noise of row `to`, z put in."""
        ratio = self.a_grid[to] / self.a_here[j]
        width = jnp.sqrt(jnp.maximum(self.s_grid[to] ** 2 - (ratio * self.s_here[j]) ** 2, 0))
        return jax.tree.map(lambda leaf, new: (ratio * leaf + width * new).astype(leaf.dtype), x, z)

    def invert(self, x: PyTree, data: PyTree, j, to) -> PyTree:
        """One centred particle before row j moved along the flow to row `to`, its centred data prediction held."""
        ratio = self.s_grid[to] / self.s_here[j]
        pull = self.a_grid[to] - self.a_here[j] * ratio
        return jax.tree.map(lambda leaf, m: (ratio * leaf + pull * m).astype(leaf.dtype), x, data)


class Proposal(eqx.Module):
    """A `Move` worked out: every particle's kernel, the row it comes from and the one it arrives at.

    `fault` is 0, or an index of `FAULTS` with the slot, its row and the `to` asked for.
    """

    kernel: Int[Array, " n"]
    start: Int[Array, " n"]
    row: Int[Array, " n"]
    parents: Int[Array, " n"] | None
    fault: Int[Array, " 4"]

    @property
    def moves(self) -> Bool[Array, " n"]:
        return self.kernel != Move.HOLD


def propose(controller: Controller, particles: Particles, scene: Scene, key) -> Proposal:
    """What the controller plans, with every particle's rows checked.

    Raises:
        InputError: arrays that are not one for all nor one for each.
    """
    answer, n, end = controller.plan(particles, scene, key), particles.size, scene.rows.micro_steps
    move = answer if isinstance(answer, Move) else Move(parents=answer)
    kernel, to = (_for_all(name, getattr(move, name), n) for name in ("kernel", "to"))
    row = particles.row if move.parents is None else particles.row[move.parents]
    back, edges = (kernel == Move.RENOISE) | (kernel == Move.INVERT), scene.boundaries
    allowed = jnp.array([name in ("denoise", *controller.kernels) for name in KERNELS])
    known = (kernel >= 0) & (kernel < len(KERNELS))
    faults = [
        ~known,
        ~allowed[jnp.clip(kernel, 0, len(KERNELS) - 1)],
        back & ~((to >= 0) & (to < row) & edges[jnp.clip(to, 0, end)]),
        back & ~edges[row],
        (kernel == Move.INVERT) & (row == end),
    ]
    found = jnp.select(faults, range(1, len(FAULTS)), 0)
    slot = jnp.argmax(found > 0)
    fault = jnp.stack([found[slot], slot, row[slot], to[slot]]).astype(jnp.int32)
    kernel = jnp.where((row == end) & (kernel == Move.DENOISE), Move.HOLD, kernel)
    arrival = jnp.where(back, to, row + (kernel == Move.DENOISE))
    return Proposal(kernel, row, arrival, move.parents, fault)


def restarted(rows: Rows, x: PyTree) -> SolverState:
    """A solver that has just arrived at the centred point x, without history."""
    return SolverState(x, x, (jax.tree.map(jnp.zeros_like, x),) * rows.memory)


def fault_message(fault: np.ndarray) -> str:
    reason, slot, row, to = (int(number) for number in fault)
    return f"the controller planned an illegal move for particle {slot} before row {row}, to={to}: {FAULTS[reason]}"


def check_kernels(controller: Controller, plan: Plan, path: Path):
    """Refuse kernels that do not exist or that the plan or the path cannot bear.

    Raises:
        InputError: an unknown kernel; "renoise" on a path whose noise is not normal; going back under a plan that keeps
            memory between steps and has no rows to begin again with.
    """
    name = type(controller).__name__
    for kernel in controller.kernels:
        if kernel not in KERNELS:
            raise InputError(unknown("kernel", kernel, KERNELS))
    if "renoise" in controller.kernels and not path.noise.gaussian:
        raise InputError(f"{name} renoises, which needs normal noise; this path has {type(path.noise).__name__}")
    if {"renoise", "invert"} & set(controller.kernels) and not plan.fallback and _remembers(plan):
        raise InputError(
            f"{name} goes back, but {plan.name} keeps memory between steps and has no rows to begin again with; use"
            " dpmpp, unipc, deis or a one-step solver"
        )


def _remembers(plan: Plan) -> bool:
    """Whether a row reads an output or an anchor from before its own step."""
    if plan.E.any():
        return True
    begin = 0
    for j in range(plan.nfe):
        begin = j if j and plan.whole[j - 1] else begin
        if plan.M[j, :, 3 + j - begin :].any() or (j == begin and plan.M[j, :, 1].any()):
            return True
    return False


def _for_all(name: str, value, n: int) -> Int[Array, " n"]:
    value = jnp.asarray(value)
    if value.shape not in ((), (n,)) or not jnp.issubdtype(value.dtype, jnp.integer):
        raise InputError(
            f"{name} of a Move must be a whole number or {n} of them, got {value.dtype.name} of shape {value.shape}"
        )
    return jnp.broadcast_to(value, (n,)).astype(jnp.int32)
