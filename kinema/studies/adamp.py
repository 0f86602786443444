"""Momentum lengthens weights that a normalisation follows; the projection much less: exactly, and on digits."""

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from kinema import learn
from kinema.errors import require
from kinema.learn.optim import adamp, sgdp
from kinema.report.charts import house, log_scale
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """Steps on the quotient and starts a seed; on digits steps, width of hidden layers and rules."""

    quotient: int
    starts: int
    digits: int
    width: int
    rules: tuple[str, ...]


RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
EIGENVALUES = np.linspace(1, 100, 50) / 100
TRAINED, BATCH = 1000, 128
DECAY = 1e-4


def _momentum(rate, momentum=0.9, decay=0.0) -> optax.GradientTransformation:
    """The momentum that `sgdp` projects, its decay as strong."""
    decayed = optax.add_decayed_weights(decay, mask=learn.leaf_mask("weight*"))
    return optax.chain(decayed, optax.trace(momentum), optax.scale_by_learning_rate(rate))


def _projected(rate, momentum=0.9, decay=0.0) -> optax.GradientTransformation:
    return sgdp(rate, momentum, weight_decay=decay, mask="weight*")


BUILT = {"momentum": _momentum, "SGDP": _projected}
RULES = {  # on the quotient: which, and its momentum
    "gradient descent": ("momentum", 0.0),
    "momentum 0.9": ("momentum", 0.9),
    "SGDP 0.9": ("SGDP", 0.9),
    "momentum 0.95": ("momentum", 0.95),
    "SGDP 0.95": ("SGDP", 0.95),
}
PLAIN, OURS = "momentum 0.9", "SGDP 0.9"
ON_DIGITS = {  # with a decay
    "momentum": lambda decay: _momentum(1.0, decay=decay),
    "SGDP": lambda decay: _projected(1.0, decay=decay),
    "Adam": lambda decay: optax.adam(0.1),
    "AdamP": lambda decay: adamp(0.1),
}
SIZES = {
    "smoke": Size(100, 1, 2, 8, ("momentum", "SGDP")),
    "quick": Size(2000, 5, 600, 128, tuple(ON_DIGITS)),
    "full": Size(2000, 5, 6000, 512, tuple(ON_DIGITS)),
}


@study(
    "adamp",
    "Heo et al., 2021, arXiv 2006.08217",
    "On a scale-invariant loss the radial projection brings momentum 0.9 to a gap below 1e-15 at every rate from 0.03 "
    "to 3, where plain momentum stays above 1e-9, and lengthens the weights at most 1.35 times as much as gradient "
    "descent does.",
    title="Momentum without lengthening: AdamP",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    quotients = descents(size, seeds)
    gaps = {name: one.gap[..., -1].mean(1) for name, one in quotients.items()}
    growth = {name: one.length[..., -1].mean(1) for name, one in quotients.items()}
    lengthened = growth[OURS] / growth["gradient descent"]
    digits = trained(size, jnp.stack([jr.key(seed) for seed in seeds]))
    grown = {name: one.length[:, -1] / one.length[:, 0] for name, one in digits.items()}
    metrics = [
        Metric("gap, SGDP 0.9, worst rate", gaps[OURS].max(1), 1e-15, baseline=gaps[PLAIN].max(1), against=PLAIN),
        Metric("gap, momentum 0.9, best rate", gaps[PLAIN].min(1), 1e-9, ">="),
        Metric("length of SGDP 0.9 over gradient descent, worst rate", lengthened.max(1), 1.35, unit="x"),
    ]
    for name, plain in BESIDE.items():
        if name in digits:
            metrics += [
                Metric(
                    f"growth of hidden weights on digits, {name}", grown[name], baseline=grown[plain], against=plain
                ),
                Metric(f"held-out loss, {name}", digits[name].loss, baseline=digits[plain].loss, against=plain),
            ]
    return Evidence(
        metrics=metrics,
        figures=[quotient_picture(quotients), digits_picture(digits)],
        tables=[
            by_rate("Gap of the Rayleigh quotient at the end", gaps),
            by_rate("Length of the weight at the end, 1 at the start", growth),
            Table(
                "Digits, two hidden layers with batch normalisation",
                ["optimizer", "growth of hidden weights", "last angle of a step, degrees", "held-out loss", "accuracy"],
                [
                    [name, *map(Spread.of, (grown[name], one.angle[:, -1], one.loss, one.accuracy))]
                    for name, one in digits.items()
                ],
            ),
        ],
        settings={
            "quotient": f"50 eigenvalues from 0.01 to 1, |w| = 1, {size.quotient} steps, float64; "
            f"mean of {size.starts} starts a seed",
            "digits": f"64-{size.width}-{size.width}-10, {TRAINED} to train on and 797 to judge, batch {BATCH}, "
            f"{size.digits} steps; rate 1 (momentum), 0.1 (Adam), constant",
        },
    )


DECAYED = f", decay {DECAY:g}"
BESIDE = {"SGDP": "momentum", f"SGDP{DECAYED}": f"momentum{DECAYED}", "AdamP": "Adam"}


class Descent(NamedTuple):
    """(seeds, starts, rates, steps): the gap to the least value, and the length of the weight."""

    gap: np.ndarray
    length: np.ndarray


def descents(size: Size, seeds: tuple[int, ...]) -> dict[str, Descent]:
    """Every rule at every rate on wᵀΛw / wᵀw, in double precision."""
    with jax.enable_x64(True):
        starts = jnp.stack([jr.normal(jr.key(seed), (size.starts, 1, len(EIGENVALUES))) for seed in seeds])
        starts /= jnp.linalg.norm(starts, axis=-1, keepdims=True)
        found = {}
        for kind in BUILT:
            momenta = {name: value for name, (of, value) in RULES.items() if of == kind}
            out = _descents(jnp.asarray(list(momenta.values())), starts, jnp.asarray(RATES), kind, size.quotient)
            found |= {name: Descent(*map(np.asarray, (out[0][k], out[1][k]))) for k, name in enumerate(momenta)}
        return {name: found[name] for name in RULES}


@functools.partial(jax.jit, static_argnames=("kind", "steps"))
def _descents(momenta, starts, rates, kind, steps):
    shifted = jnp.asarray(EIGENVALUES - EIGENVALUES[0])

    def gap(w):
        return jnp.sum(shifted * w**2) / jnp.sum(w**2)

    def one(momentum, w, rate):
        rule = BUILT[kind](rate, momentum)

        def step(carry, _):
            params, state = carry
            updates, state = rule.update(jax.grad(lambda params: gap(params["weight"]))(params), state, params)
            params: Any = optax.apply_updates(params, updates)
            return (params, state), (gap(params["weight"]), jnp.linalg.norm(params["weight"]))

        params = {"weight": w}
        return jax.lax.scan(step, (params, rule.init(params)), None, steps)[1]

    each = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (None, 0, None))
    return jax.vmap(each, (0, None, None))(momenta, starts, rates)


class Trained(NamedTuple):
    """Length of the hidden weights and angle of their steps (seeds, steps); loss and accuracy on held-out digits."""

    length: np.ndarray
    angle: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def trained(size: Size, keys) -> dict[str, Trained]:
    """Normalised perceptrons on digits for every key, without decay and, those of momentum, with it."""
    digits = require("sklearn.datasets", "digits").load_digits()
    x, y = jnp.asarray(digits.data, jnp.float32) / 16, jnp.asarray(digits.target)
    found = {}
    for name in size.rules:
        for decay in (0.0, DECAY) if name in BUILT else (0.0,):
            out = _trained(keys, x, y, decay, name, size)
            found[name + (DECAYED if decay else "")] = Trained(*map(np.asarray, out))
    return found


@functools.partial(jax.jit, static_argnames=("name", "size"))
def _trained(keys, x, y, decay, name, size):
    def one(key):
        key_rows, key_net, key_steps = jr.split(key, 3)
        rows = jr.permutation(key_rows, len(x))
        rule, (fit, rest) = ON_DIGITS[name](decay), (rows[:TRAINED], rows[TRAINED:])
        params = perceptron((64, size.width, size.width, 10), key_net)

        def loss(params, rows):
            logits, _ = logits_of(params, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        def step(carry, key):
            params, state = carry
            grads = jax.grad(loss)(params, jr.choice(key, fit, (BATCH,), replace=False))
            updates, state = rule.update(grads, state, params)
            moved: Any = optax.apply_updates(params, updates)
            return (moved, state), (length(moved), angle(params, moved))

        (end, _), (lengths, angles) = jax.lax.scan(step, (params, rule.init(params)), jr.split(key_steps, size.digits))
        statistics = logits_of(end, x[fit])[1]
        logits, _ = logits_of(end, x[rest], statistics)
        held_out = optax.softmax_cross_entropy_with_integer_labels(logits, y[rest]).mean()
        lengths = jnp.concatenate([length(params)[None], lengths])
        return lengths, angles, held_out, jnp.mean(jnp.argmax(logits, 1) == y[rest])

    return jax.vmap(one)(keys)


def perceptron(sizes: tuple[int, ...], key) -> dict[str, jax.Array]:
    """Weights (out, in) and, behind each but the last, gain and shift of a batch normalisation."""
    params = {}
    for k, (n, m) in enumerate(pairwise(sizes)):
        params[f"weight{k}"] = jr.normal(jr.fold_in(key, k), (m, n)) * n**-0.5
        params |= {f"gain{k}": jnp.ones(m), f"shift{k}": jnp.zeros(m)}
    del params[f"gain{len(sizes) - 2}"]
    return params


def logits_of(params, x, statistics=None):
    """Logits of a batch (n, 64), and mean and variance before every normalisation: of the batch, or those given."""
    seen, last = [], len(params) // 3
    for k in range(last):
        x = x @ params[f"weight{k}"].T
        mean, variance = (x.mean(0), x.var(0)) if statistics is None else statistics[k]
        seen.append((mean, variance))
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params[f"gain{k}"] + params[f"shift{k}"]
        x = jax.nn.relu(x)
    return x @ params[f"weight{last}"].T + params[f"shift{last}"], seen


def hidden(params) -> list[jax.Array]:
    """The weights that a normalisation follows."""
    return [params[f"weight{k}"] for k in range(len(params) // 3)]


def length(params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(w**2) for w in hidden(params)))


def angle(before, after) -> jax.Array:
    """The mean angle in degrees by which a step turns the rows of the hidden weights."""

    def rows(w, v):
        cosine = jnp.sum(w * v, 1) / jnp.linalg.norm(w, axis=1) / jnp.linalg.norm(v, axis=1)
        return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))

    return jnp.mean(jnp.concatenate([rows(w, v) for w, v in zip(hidden(before), hidden(after))]))


def by_rate(title: str, values: dict[str, np.ndarray]) -> Table:
    rows = [[name, *map(Spread.of, np.asarray(found).T)] for name, found in values.items()]
    return Table(title, ["optimizer", *(f"rate {rate:g}" for rate in RATES)], rows)


def quotient_picture(found) -> Picture:
    """Gap and length at rate 1, a seed a line."""
    index = RATES.index(1.0)
    with house(6.4, 3.0, ncols=2) as (figure, axes):
        for colour, name in enumerate(("gradient descent", PLAIN, OURS)):
            for panel, values in zip(axes, found[name]):
                for k, line in enumerate(values[:, 0, index]):
                    panel.plot(np.maximum(line, 1e-18), color=f"C{colour}", lw=1, label=None if k else name)
        axes[0].set(yscale="log", xlabel="step", ylabel="gap")
        axes[1].set(xlabel="step", ylabel="length of the weight")
        log_scale(axes[1], "y")
        axes[1].legend(fontsize=7)
    return Picture(
        "quotient",
        figure,
        "Gap of the Rayleigh quotient and length of the weight against steps, three optimizers at rate 1",
        "Momentum lengthens the weight early, and its steps are short ever after. Gaps below 1e-18 are drawn there.",
    )


def digits_picture(digits: dict[str, Trained]) -> Picture:
    with house(6.4, 3.0, ncols=2) as (figure, axes):
        for colour, name in enumerate(filter(digits.get, ON_DIGITS)):
            one = digits[name]
            axes[0].plot((one.length / one.length[:, :1]).mean(0), color=f"C{colour}", label=name)
            axes[1].plot(np.maximum(one.angle.mean(0), 1e-3), color=f"C{colour}", lw=0.8)
        axes[0].set(xlabel="step", ylabel="length of hidden weights over the first")
        axes[1].set(xlabel="step", ylabel="angle of a step, degrees")
        log_scale(axes[1], "y")
        axes[0].legend(fontsize=7)
    return Picture(
        "digits",
        figure,
        "Length of hidden weights and angle of their steps while a normalised perceptron learns digits",
        "At a constant rate the steps that count shrink as the weights grow; the projection keeps them long.",
    )
