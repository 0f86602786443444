"""The Controller protocol: how generation is steered while it runs.

A population of particles walks the rows of a solver's plan. One round is

    plan     choose every particle's parent (a branch is a repeated parent) and its `Move`
    edit     change the data prediction, in physical units; a multistep history sees the change
    move     the sampler advances, holds or goes back
    arrive   change the state, noise and all, before the model sees it
    predict  the sampler asks the model: the only place where it is called and counted
    update   weigh, resample, accept or mutate

and `finish` acts on the last sample. Every steering method is some of these functions; `steer` runs them.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from kinema.errors import InputError
from kinema.generate.codec import Codec
from kinema.generate.generator import AbstractGenerator
from kinema.generate.sampling import Rows, SolverState

Count = Int[Array, ""] | int


class Ledger(eqx.Module):
    """Work done so far over the whole population: model evaluations, calls of a reward, calls of its gradient."""

    evaluations: Int[Array, ""]
    rewards: Int[Array, ""]
    gradients: Int[Array, ""]

    @classmethod
    def empty(cls) -> "Ledger":
        return cls(*(jnp.zeros((), jnp.int32),) * 3)

    def add(self, *, evaluations: Count = 0, rewards: Count = 0, gradients: Count = 0) -> "Ledger":
        return self.join(Ledger(*(jnp.asarray(count, jnp.int32) for count in (evaluations, rewards, gradients))))

    def join(self, other: "Ledger") -> "Ledger":
        """The work of both."""
        return jax.tree.map(jnp.add, self, other)


class Budget(eqx.Module):
    """Limits on a `Ledger`; None is no limit.

    Raises:
        InputError: a limit below 1.
    """

    evaluations: int | None = None
    rewards: int | None = None
    gradients: int | None = None

    def __check_init__(self):
        for name, limit in vars(self).items():
            if limit is not None and limit < 1:
                raise InputError(f"budget of {name} must be at least 1, got {limit}")

    def exceeded(self, ledger: Ledger) -> Bool[Array, ""]:
        """Whether any limit has been passed."""
        over = [getattr(ledger, name) > limit for name, limit in vars(self).items() if limit is not None]
        return jnp.any(jnp.array(over)) if over else jnp.zeros((), bool)


class Particles(eqx.Module):
    """A population of N: every array has a leading axis of N.

    `row` is the plan's row that each particle stands before, the number of rows once it is finished; `raw` the model's
    output there, computed on arrival; `ancestor` the slot it came from at the start; `aux` whatever a controller keeps
    per particle. `age` counts the micro-steps since the solver's history was empty, None under a controller that never
    empties it.
    """

    state: SolverState
    raw: PyTree
    row: Int[Array, " n"]
    log_weight: Float[Array, " n"]
    ancestor: Int[Array, " n"]
    aux: PyTree = None
    age: Int[Array, " n"] | None = None

    @property
    def size(self) -> int:
        return self.row.shape[0]

    def select(self, parents: Int[Array, " n"]) -> "Particles":
        """The population whose slot k continues parent k: state, history and all are gathered together."""
        return jax.tree.map(lambda leaf: leaf[parents], self)


class Move(eqx.Module):
    """What every particle does in a round; a number stands for all of them.

    `kernel` is `Move.DENOISE` (one row on), `Move.HOLD` (nothing, at no cost), `Move.RENOISE` (back to row `to` by the
    path's own noise) or `Move.INVERT` (back to row `to` along the probability flow, which denoising retraces). `to` is
    read by the last two only and must be an earlier row that begins a whole step. They empty the solver's history. A
    finished particle holds still under `DENOISE`; it can be renoised, not inverted. `parents` None keeps everybody.
    """

    DENOISE: ClassVar[int] = 0
    HOLD: ClassVar[int] = 1
    RENOISE: ClassVar[int] = 2
    INVERT: ClassVar[int] = 3

    kernel: Int[Array, "..."] | int = 0
    to: Int[Array, "..."] | int = 0
    parents: Int[Array, " n"] | None = None


KERNELS = ("denoise", "hold", "renoise", "invert")  # in the order of the numbers of `Move`


class Scene(eqx.Module):
    """What a controller may look at: the generator, the bound plan, the codec to physical units, conditions."""

    generator: AbstractGenerator
    rows: Rows
    codec: Codec | None
    cond: PyTree | None
    x0: PyTree | None

    @property
    def boundaries(self) -> Bool[Array, " points"]:
        """Whether a particle before row j stands on the grid, and not inside a step; the last entry is the end."""
        return jnp.concatenate([jnp.ones(1, bool), self.rows.whole])

    def finished(self, particles: Particles) -> Bool[Array, " n"]:
        """Which particles have run the whole plan."""
        return particles.row == self.rows.micro_steps

    def decode(self, x: PyTree) -> PyTree:
        """One sample in physical units."""
        return x if self.codec is None else self.codec.decode(x)

    def encode(self, states: PyTree) -> PyTree:
        """One sample as the generator sees it."""
        return states if self.codec is None else self.codec.encode(states)


class Controller(eqx.Module):
    """Base of all steering methods. Override what the method needs; the defaults steer nothing.

    `copies` particles are run for every sample asked for.
    """

    @property
    def copies(self) -> int:
        return 1

    @property
    def edits(self) -> bool:
        """Whether `edit` changes anything: without it the conversion to a data prediction is not compiled."""
        return type(self).edit is not Controller.edit

    def check(self, scene: Scene, stochastic: bool) -> None:
        """Refuse a generator or plan that the method cannot steer. Called once, before compilation."""

    def memory(self, n: int) -> PyTree:
        """What each of n particles keeps in `aux`, with a leading axis of n."""
        return None

    def begin(self, particles: Particles, scene: Scene, ledger: Ledger) -> tuple[Particles, Ledger]:
        """Set first weights, and what `aux` should know of the first prediction."""
        return particles, ledger

    @property
    def kernels(self) -> tuple[str, ...]:
        """Which of "hold", "renoise" and "invert" `plan` may use: no other is compiled."""
        return ()

    def rounds(self, scene: Scene) -> int:
        """The most rounds that a method with `kernels` may take: more than the plan has rows if it goes back."""
        return scene.rows.micro_steps

    def price(self, particles: Particles, scene: Scene) -> tuple[Ledger, Ledger]:
        """The most that the next `update` and, after it, `finish` will add to the ledger, for a budget to bind before.

        `particles` stand at the rows that the round takes them to.
        """
        return Ledger.empty(), Ledger.empty()

    def plan(self, particles: Particles, scene: Scene, key) -> Move | Int[Array, " n"] | None:
        """The next round: a `Move`, if `kernels` names any; in short, parents who all denoise, or None for everybody.

        `scene.boundaries[row]` says where a particle may be sent back from and to.
        """
        return None

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        """One particle's data prediction, changed: `x` at time `t` and `data` in physical units, `aux` its own."""
        return data

    @property
    def arrives(self) -> bool:
        """Whether `arrive` changes anything."""
        return type(self).arrive is not Controller.arrive

    def arrive(self, t, x: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        """One particle's state at time `t`, changed before it is predicted from: encoded, with the noise of `t`."""
        return x

    def update(self, particles: Particles, data: PyTree, scene: Scene, ledger: Ledger, key) -> tuple[Particles, Ledger]:
        """After a whole step: `data` `(N, ...)` are the new data predictions, in physical units.

        With `kernels`, after every round that leaves a particle on the grid; a finished one's data is its sample.
        """
        return particles, ledger

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        """The last samples `(N, ...)`, in physical units -> (samples, log_weights, ledger), `copies` times fewer.

        `scene.finished(particles)` says which ran to the end; the others are data predictions.
        """
        return x, particles.log_weight, ledger
