"""The main job, stage by stage: balls are simulated, learnt, generated, steered, restored and judged."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from kinema.generate import Run, sample
from kinema.generate.solver import Plan, euler, grids
from kinema.generate.training import train
from kinema.motion import Trajectory
from kinema.simulate import Balls, make
from kinema.steer import BestOf, LawProjection, Observed, restore, steer
from kinema.steer.motion_fit import fit_motion
from kinema.verify.distances import energy_distance
from kinema.verify.laws import LawErrors, laws, replay_error

EVALUATIONS = 12
LAWS = ("replay", "energy", "momentum", "kinematic", "wall", "ball")


@dataclass(frozen=True)
class Sizes:
    """How much of everything: trajectories to learn from, steps and rate of training, motions to judge, candidates,
    motions to restore; the network, and the numbers of evaluations compared."""

    trajectories: int = 4096
    steps: int = 1500
    rate: float = 4e-3
    motions: int = 1024
    long: int = 256
    candidates: int = 16
    chosen: int = 256
    restored: int = 256
    width: int = 128
    depth: int = 2
    counts: tuple[int, ...] = (6, 12, 60, 200)


SIZES = {
    # few distinct shapes: what costs here is compilation
    "smoke": Sizes(256, 20, 4e-3, 16, 16, 4, 16, 16, width=32, depth=1, counts=(12, 60)),
    "quick": Sizes(),
    "full": Sizes(65536, 20000, 2e-3, 4096, 1024, chosen=1024, restored=1024, width=192, depth=4),
}


@dataclass(frozen=True)
class Restored:
    """Motion seen through noise of one standard deviation of the data, four frames hidden, and three ways back."""

    truth: PyTree
    observed: Observed
    ways: dict[str, PyTree]
    errors: dict[str, LawErrors]
    rms: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One seed of the main job. Dictionaries are by the name of the motion, or by network evaluations."""

    run: Run
    motions: dict[str, Trajectory]
    errors: dict[str, LawErrors]
    distance: dict[str, float]
    by_count: dict[int, dict[str, float]]
    moved: float
    time_ratio: float
    restored: Restored
    seconds: dict[str, float] = field(default_factory=dict)


Stage = Callable[[str], Any]


@contextmanager
def silent(title: str) -> Iterator[None]:
    """A stage that nobody watches."""
    yield


def learn_motion(
    world: Balls,
    data: Trajectory,
    sizes: Sizes,
    *,
    key,
    folder: Path | None = None,
    predicts: str = "data",
    progress: bool = False,
) -> Run:
    """Train the generator of the demo on trajectories of the world."""
    return train(
        data.states,
        key=key,
        steps=sizes.steps,
        rate=sizes.rate,
        ts=data.ts,
        world=dict(data.meta),
        augment=world.augment,
        model="motion_tokens",
        sizes={"distinct_axes": False, "distinct_bodies": False, "width": sizes.width, "depth": sizes.depth},
        predicts=predicts,
        folder=folder,
        progress=progress,
    )


def plan_of(run: Run, evaluations: int = EVALUATIONS) -> Plan:
    """Euler on equal steps of time: the sampler of the demo."""
    return euler(run.generator.path, grids.uniform_time(run.generator.path, evaluations))


def measure(world: Balls, run: Run, held: Trajectory, sizes: Sizes, *, key, stage: Stage = silent) -> Measured:
    """Generate, steer, restore and judge with a trained generator."""
    key_sample, key_best, key_restore = jr.split(key, 3)
    clock: dict[str, float] = {}

    @contextmanager
    def timed(title: str):
        started = time.perf_counter()
        with stage(title):
            yield
        clock[title] = time.perf_counter() - started

    def motion(states: PyTree) -> Trajectory:
        return Trajectory(world.ts, states, {}, dict(held.meta), single=False)

    n, plan = sizes.motions, plan_of(run)
    encode = jax.vmap(run.codec.encode)
    truth = encode(held.states)
    root = float(np.sqrt(np.prod(run.shape)))

    def distance(traj: Trajectory) -> float:
        return float(energy_distance(encode(traj.states), truth)) / root

    with timed(f"generate: {n} motions, {EVALUATIONS} evaluations each"):
        generated = draw(run, plan, n, key_sample)
    with timed("steer: projection onto the law"):
        projection = LawProjection(world)
        steered = steer(run.generator, plan, projection, n, key=key_sample, shape=run.shape, codec=run.codec).x
        ratio = time_ratio(run, plan, projection, n, key_sample)
    with timed(f"steer: best of {sizes.candidates}"):
        best_of = BestOf(sizes.candidates, Replayed(world))
        best = steer(run.generator, plan, best_of, sizes.chosen, key=key_best, shape=run.shape, codec=run.codec).x
    with timed("steer: restore noisy, partly hidden motion"):
        restored = restore_motion(world, run, held, sizes.restored, key_restore, motion)
    motions = {
        "true": held[:n],
        "generated": motion(generated),
        f"best of {sizes.candidates}": motion(best),
        "steered": motion(steered),
    }
    with timed("verify: laws and distances"):
        errors = {name: laws(traj, world) for name, traj in motions.items()}
        apart = {name: distance(traj) for name, traj in motions.items() if name != "true"}
        apart["true"] = float(energy_distance(truth[:n], truth[n:])) / root
    by_count = {}
    for count in sizes.counts:
        size = n if count <= EVALUATIONS else sizes.long
        with timed(f"verify: {size} motions at {count} evaluations"):
            drawn = motion(draw(run, plan_of(run, count), size, key_sample))
            by_count[count] = laws(drawn, world).means() | {"distance": distance(drawn)}
    moved = float(jnp.sqrt(jnp.mean((encode(steered) - encode(generated)) ** 2)))
    return Measured(run, motions, errors, apart, by_count, moved, ratio, restored, clock)


def draw(run: Run, plan: Plan, n: int, key) -> PyTree:
    """n generated motions in physical units."""
    return jax.vmap(run.codec.decode)(sample(run.generator, plan, n, key=key, shape=run.shape, batch_size=256).x)


class Replayed(eqx.Module):
    """Reward: minus the replay error of one motion. A tree, so that other worlds of the same kind need no compiling."""

    world: Balls

    def __call__(self, states: PyTree) -> Float[Array, ""]:
        return -replay_error(self.world, states, self.world.dt)


def time_ratio(run: Run, plan: Plan, controller: LawProjection, n: int, key, repeats: int = 5) -> float:
    """Time of steered over unsteered sampling, both compiled, in turn; the median of pairs."""
    shape, codec = run.shape, run.codec

    def seconds(function) -> float:
        started = time.perf_counter()
        jax.block_until_ready(function().x)
        return time.perf_counter() - started

    def plain():
        return sample(run.generator, plan, n, key=key, shape=shape)

    def projected():
        return steer(run.generator, plan, controller, n, key=key, shape=shape, codec=codec)

    for once in (plain, projected):
        once()
    return float(np.median([seconds(projected) / seconds(plain) for _ in range(repeats)]))


def observe(run: Run, states: PyTree, key, *, level: float = 1.0, hidden: int = 4) -> Observed:
    """Motion seen through normal noise of `level` standard deviations, `hidden` frames in a row left out."""
    key_noise, key_hide = jr.split(key)
    encoded = jax.vmap(run.codec.encode)(states)
    noisy = jax.vmap(run.codec.decode)(encoded + level * jr.normal(key_noise, encoded.shape))
    n, frames = encoded.shape[:2]
    first = jr.randint(key_hide, (n, 1), 1, frames - hidden)
    frame = jnp.arange(frames)
    seen = (frame < first) | (frame >= first + hidden)
    noise = {name: level * float(run.codec.std[i]) for i, name in enumerate(run.codec.names)}
    return Observed(noisy, seen, noise)


def restore_motion(world: Balls, run: Run, held: Trajectory, n: int, key, motion: Callable) -> Restored:
    """Restore by the law alone, by the generator alone and by both; root mean square errors in units of the data."""
    truth = jax.tree.map(lambda leaf: leaf[:n], held.states)
    observed = observe(run, truth, jr.fold_in(key, 0))

    def both(law: Balls | None) -> PyTree:
        return restore(run.generator, run.codec, observed, key=jr.fold_in(key, 1), world=law).x

    alone = law_alone(world, observed.states, observed.seen, observed.weights)
    ways = {"law alone": alone, "generator alone": both(None), "both": both(world)}
    encode = jax.vmap(run.codec.encode)
    rms = {
        name: float(jnp.sqrt(jnp.mean((encode(states) - encode(truth)) ** 2)))
        for name, states in {"as seen": observed.states, **ways}.items()
    }
    return Restored(truth, observed, ways, {name: laws(motion(states), world) for name, states in ways.items()}, rms)


def _fill(values: Float[Array, "frames ..."], seen: Bool[Array, " frames"]) -> Float[Array, "frames ..."]:
    """Hidden frames by straight lines between those seen."""
    frame = jnp.arange(len(values), dtype=values.dtype)
    before = jax.lax.cummax(jnp.where(seen, jnp.arange(len(values)), -1))
    after = jax.lax.cummin(jnp.where(seen, jnp.arange(len(values)), len(values)), reverse=True)
    low, high = jnp.where(before < 0, after, before), jnp.where(after >= len(values), before, after)
    share = jnp.where(high > low, (frame - low) / jnp.maximum(high - low, 1), 0)
    share = share.reshape(-1, *(1,) * (values.ndim - 1))
    return values[low] * (1 - share) + values[high] * share


@eqx.filter_jit
def law_alone(world: Balls, states: PyTree, seen: Bool[Array, "n frames"], weights: PyTree) -> PyTree:
    """Fits of the exact motion that begin at what was seen, hidden frames filled by straight lines."""

    def fit(states, seen, weights):
        guess = jax.tree.map(lambda leaf: _fill(leaf, seen), states)
        return fit_motion(world, guess, states, weights)

    return jax.vmap(fit)(states, seen, weights)


def simulate_all(sizes: Sizes, *, key) -> tuple[Balls, Trajectory, Trajectory]:
    """The world, trajectories to learn from and as many held out as are judged, twice."""
    world: Any = make("collisions")
    key_data, key_held = jr.split(key)
    return world, world.simulate(sizes.trajectories, key=key_data), world.simulate(2 * sizes.motions, key=key_held)
