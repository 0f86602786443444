"""What `masked_diffusion` measures where the answer is known: a joint law by enumeration, and a law of tokens."""

from functools import cache, partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from kinema.generate.discrete.categorical import LARGEST
from kinema.generate.discrete.first_hitting import sample_masked
from kinema.generate.discrete.masked_exact import law_of_plans, parallel_law, plans, table_model
from kinema.generate.discrete.masking import MaskedModel
from kinema.generate.discrete.truncation import effective_temperature, entropy, largest_gumbel, one_stage_law
from kinema.studies.timing import least_seconds

LENGTH, LEVELS = 4, 3
ZIPF = 1 / np.arange(1, 2001) / (1 / np.arange(1, 2001)).sum()
BITS = {"PyTorch float32": 24, "JAX float32": 23, "JAX float16": 10, "JAX bfloat16": 7}
HALF_STEPS = 16
AT_ONCE = 10_000  # tokens in memory


class Exactness(NamedTuple):
    """Total variation to a joint law by (sampler, calls), measured and by enumeration; the mean of that of as many
    independent draws, and how far above it first hitting lies; ancestral steps for an exact error below it; the bound
    of the exact network less the entropy; and the whole exact curve of ancestral sampling."""

    sampled: dict[tuple[str, int], float]
    exact: dict[tuple[str, int], float]
    floor: float
    above_floor: float
    needed: int
    bound_gap: float
    curve: tuple[np.ndarray, np.ndarray]


def on_joint(draws: int, parallel: tuple[int, ...], ancestral: tuple[int, ...], seed: int) -> Exactness:
    joint = np.random.default_rng(seed).dirichlet(np.full(LEVELS**LENGTH, 0.3)).reshape((LEVELS,) * LENGTH)
    model, truth = table_model(joint), joint.ravel()
    laws = law_of_plans(model)
    rounds = plans(LENGTH).max(1) + 1

    def apart(law):
        return float(np.abs(law - truth).sum() / 2)

    def after(steps):
        # steps! / (steps - m)! / m! / steps^L, without large numbers
        share = [np.prod([(steps - j) / (j + 1) for j in range(m)]) / float(steps) ** LENGTH for m in rounds]
        return laws @ share

    asked = [("first_hitting", LENGTH), *(("parallel", n) for n in parallel), *(("ancestral", n) for n in ancestral)]
    sampled, exact = {}, {}
    for i, (how, calls) in enumerate(asked):
        method, steps = {"first_hitting": (how, None), "ancestral": ("cached", calls)}.get(how, (how, calls))
        x = sample_masked(model, draws, key=jr.fold_in(jr.key(seed), i), method=method, steps=steps).x
        place = np.asarray(x) @ LEVELS ** np.arange(LENGTH - 1, -1, -1)
        sampled[how, calls] = apart(np.bincount(place, minlength=len(truth)) / draws)
        exact[how, calls] = apart(after(calls) if how == "ancestral" else parallel_law(model, calls))
    floor = float(np.sqrt(truth * (1 - truth) / (2 * np.pi * draws)).sum())
    grid = np.unique(np.geomspace(1, 4096, 200).astype(int))
    curve = np.array([apart(after(n)) for n in grid])
    needed = int(grid[np.argmax(curve < floor)])
    above = sampled["first_hitting", LENGTH] / floor
    return Exactness(sampled, exact, floor, above, needed, abs(bound(model, truth) - entropy(truth)), (grid, curve))


def bound(model: MaskedModel, truth: np.ndarray) -> float:
    """The bound's mean over x, over all masks: each count of known variables weighs the same."""
    states = np.indices((LEVELS,) * LENGTH).reshape(LENGTH, -1).T
    masks = np.indices((2,) * LENGTH).reshape(LENGTH, -1).T.astype(bool)
    surprise = np.asarray(surprises(model, jnp.asarray(states), jnp.asarray(masks)), np.float64) @ truth
    known = masks.sum(1)
    return sum(surprise[known == d].mean() / (LENGTH - d) for d in range(LENGTH))


@eqx.filter_jit
def surprises(model: MaskedModel, states, masks) -> Array:
    def one(x, mask):
        log_p = jnp.take_along_axis(model.conditionals(x, mask), x[:, None], 1)[:, 0]
        return -jnp.where(mask, 0.0, log_p).sum()

    return jax.vmap(lambda mask: jax.vmap(lambda x: one(x, mask))(states))(masks)


class Law(NamedTuple):
    """What is drawn instead of `ZIPF`."""

    p: np.ndarray
    temperature: float
    entropy: float


@cache
def one_stage_laws(steps: tuple[int, ...]) -> dict[tuple[int, int], Law]:
    """By (bits, steps); 0 bits stand for the clocks of `categorical`."""
    found = {}
    for bits in (*BITS.values(), 0):
        for n in steps:
            p = one_stage_law(ZIPF, n, largest_gumbel(bits) if bits else LARGEST)
            found[bits, n] = Law(p, effective_temperature(ZIPF, p), entropy(p))
    return found


class Draws(NamedTuple):
    """Effective temperature of tokens drawn apart from staying masked, and their mean -log p; the temperature of JAX's
    own float16 draws in `HALF_STEPS` that include it; seconds of all draws for one sequence, ours and those."""

    temperature: float
    surprise: float
    half_temperature: float
    ours_s: float
    published_s: float


def on_draws(tokens: int, most: int, half: int, length: int, steps: int, seed: int) -> Draws:
    key_ours, key_half, key_time = jr.split(jr.key(seed), 3)
    alone, sequence = always(1), always(length)
    x = sample_masked(alone, tokens, key=key_ours, method="cached", steps=most, batch_size=AT_ONCE).x[:, 0]
    cold = one_stage(jnp.log(ZIPF).astype(jnp.float16), key_half, half, HALF_STEPS)
    temperature, half_temperature = (
        effective_temperature(ZIPF, np.bincount(np.asarray(one), minlength=len(ZIPF))) for one in (x, cold)
    )
    ours = least_seconds(lambda: sample_masked(sequence, 1, key=key_time).x, 10)
    published = least_seconds(lambda: one_stage(jnp.log(ZIPF), key_time, length, steps), 2)
    surprise = float(-np.log(ZIPF)[np.asarray(x)].mean())
    return Draws(temperature, surprise, half_temperature, ours, published)


def always(length: int) -> MaskedModel:
    """Independent tokens, each after `ZIPF`."""
    return MaskedModel(Constant(jnp.log(jnp.asarray(ZIPF)), length), length, len(ZIPF))


@partial(jax.jit, static_argnums=(2, 3))
def one_stage(log_p: Array, key, tokens: int, steps: int) -> Int[Array, " tokens"]:
    """The published draw with JAX's default `categorical`, in the precision of `log_p`: at every step every token is
    drawn among its categories and staying masked, and kept if it is known already."""
    categories = len(log_p)

    def step(x, inputs):
        key, left = inputs
        both = jnp.append(log_p - jnp.log(left).astype(log_p.dtype), jnp.log1p(-1 / left).astype(log_p.dtype))
        drawn = jr.categorical(key, jnp.broadcast_to(both, (tokens, categories + 1)), mode="low")
        return jnp.where(x == categories, drawn, x), None

    left = jnp.arange(steps, 0, -1, dtype=jnp.float32)
    return jax.lax.scan(step, jnp.full(tokens, categories), (jr.split(key, steps), left))[0]


class Constant(eqx.Module):
    log_p: Array
    length: int = eqx.field(static=True)

    def __call__(self, x):
        return jnp.broadcast_to(self.log_p, (self.length, len(self.log_p)))
