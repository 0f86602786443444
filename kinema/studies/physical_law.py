"""Physical-law testbed: does a model of motion in pixels find the law, or copy its nearest training case?

The CPU part of the study: videos of one ball along a line, 64 pixels wide, three frames given. In state space a
network extrapolates speed by being piecewise linear; from pixels it cannot, and that is the claim.
"""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kinema import learn
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.verify import Regime, conflict, draw, flip, gap, regimes

PIXELS, WIDTH, FRAMES, GIVEN, DT = 64, 10.0, 20, 3, 0.1
COLUMNS = {"in distribution": "train", "slower": "low v", "faster": "high v", "smaller": "low r", "larger": "high r"}
SIZES = {  # videos for each size of network, training steps, videos to test on
    "smoke": ({64: 64}, 20, 64),
    "quick": ({64: 300, 128: 3000}, 900, 300),
    "full": ({64: 300, 256: 3000, 1024: 30000}, 20000, 1024),
}
CASES = {"smoke": (64, 64), "quick": (128, 3000), "full": (256, 30000)}  # width, videos of each set
BANDS = ((1.0, 1.25), (3.75, 4.0))
BINS = (1.5, 2.0, 2.5, 3.0, 3.5)


class Videos(NamedTuple):
    """Pictures `(n, frames, pixels, 2)` in two colours; true positions, radii, and where the ball is wholly inside."""

    pictures: Float[Array, "n frames pixels colours"]
    x: Float[Array, "n frames"]
    radius: Float[Array, " n"]
    inside: Bool[Array, "n frames"]


@study(
    "physical-law-testbed",
    "Kang et al., 2025, arXiv 2411.02385",
    "From pixels, a model of motion is right where it was trained and several times worse outside; between training "
    "cases it drifts to one of them, reverses balls it saw mirrored, and trusts colour before velocity.",
    title="Physical-law testbed: generalisation from pixels",
    stage="verify",
)
def run(preset: str, seed: int) -> Evidence:
    sizes, steps, tests = SIZES[preset]
    key = jr.key(seed)
    found = {videos: columns(width, videos, steps, tests, jr.fold_in(key, videos)) for width, videos in sizes.items()}
    given = constant_velocity(tests, jr.fold_in(key, 1))
    drift, reversed_plain, reversed_mirrored, shifts = cases(*CASES[preset], steps, tests, jr.fold_in(key, 2))
    ratios = {videos: min(row["slower"], row["faster"]) / row["in distribution"] for videos, row in found.items()}
    outer = [abs(drift[v] - v) for v in BINS if v != BINS[2]]
    colour, velocity = shifts["colour", "velocity"]
    return Evidence(
        metrics=[
            *(
                Metric(f"error outside the trained speeds over inside, {videos} videos", ratio, 3.0, ">=")
                for videos, ratio in ratios.items()
            ),
            Metric("velocity error of constant velocity, worst column", max(given.values()), 0.05),
            Metric(
                "drift between trained speeds",
                float(np.mean(outer)),
                0.1,
                ">=",
                baseline=max(given.values()),
                against="constant velocity",
            ),
            Metric("balls reversed, mirrored copies seen", reversed_mirrored, 0.05, ">="),
            Metric("balls reversed, none seen", reversed_plain, 0.01),
            Metric("shift of colour over shift of velocity", colour / max(velocity, 1e-6), 0.5),
            *(
                Metric(f"velocity error, {videos} videos, {name}", value)
                for videos, row in found.items()
                for name, value in row.items()
            ),
            *(
                Metric(f"shift of {one} against {other}", pair[0], baseline=pair[1], against=f"of {other}")
                for (one, other), pair in shifts.items()
            ),
        ],
        figures=[columns_picture(found, given), drift_picture(drift)],
        settings={"frames": FRAMES, "given": GIVEN, "pixels": PIXELS, "steps": steps},
    )


def film(regime: Regime, n: int, key) -> Videos:
    """Videos of a regime of uniform motion, seen along its line."""
    motion = draw(regime, n, key=key)
    constants = motion.constants
    return _seen(motion.states["x"][:, :FRAMES, 0, 0], constants["radius"][:, 0], constants["colour"])


@jax.jit
def _seen(x: Float[Array, "n frames"], radius: Float[Array, " n"], colour: Int[Array, " n"]) -> Videos:
    step = WIDTH / PIXELS
    centres = (jnp.arange(PIXELS) + 0.5) * step
    away = jnp.abs(centres - x[..., None])
    cover = jnp.clip(0.5 + (radius[:, None, None] - away) / step, 0, 1)
    channel = jax.nn.one_hot(colour, 2)[:, None, None]
    inside = (x >= radius[:, None]) & (x <= WIDTH - radius[:, None])
    return Videos(cover[..., None] * channel, x, radius, inside)


def both(first: Videos, second: Videos) -> Videos:
    """Two sets of videos as one."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


class Predictor(NamedTuple):
    """A perceptron from the given frames of a video to those that follow."""

    net: eqx.nn.MLP

    def __call__(self, pictures: Float[Array, "frames pixels colours"]) -> Float[Array, "frames pixels colours"]:
        made = self.net(pictures[:GIVEN].reshape(-1)).reshape(pictures[GIVEN:].shape)
        return jnp.concatenate([pictures[:GIVEN], made])


@eqx.filter_jit
def predict(model: Predictor, pictures: Float[Array, "n frames pixels colours"]) -> Array:
    """Videos continued from their given frames."""
    return jax.vmap(model)(pictures)


def future_error(model: Predictor, batch: Float[Array, "n frames pixels colours"], key) -> tuple[Array, dict]:
    """Objective: the squared error of the frames to come."""
    return jnp.mean((jax.vmap(model)(batch)[:, GIVEN:] - batch[:, GIVEN:]) ** 2), {}


def train(videos: Videos, width: int, steps: int, key) -> Predictor:
    """Fit the squared error of the frames to come."""
    key_net, key_fit = jr.split(key)
    frame = PIXELS * 2
    net = eqx.nn.MLP(GIVEN * frame, (FRAMES - GIVEN) * frame, width, 3, jax.nn.silu, key=key_net)
    return learn.fit(
        Predictor(net),
        future_error,
        videos.pictures,
        optimizer=learn.adam(4e-3, steps),
        steps=steps,
        batch_size=64,
        key=key_fit,
        ema=0.99,
        progress=True,
    ).ema


def positions(pictures: Float[Array, "n frames pixels colours"]) -> Float[Array, "n frames"]:
    """Centres of what is covered."""
    cover = jnp.clip(pictures.sum(-1), 0, 1)
    cover = jnp.where(cover > 0.1, cover, 0)
    centres = (jnp.arange(PIXELS) + 0.5) * WIDTH / PIXELS
    return (cover * centres).sum(-1) / jnp.maximum(cover.sum(-1), 1e-3)


def speeds(x: Float[Array, "n frames"], inside: Bool[Array, "n frames"]) -> tuple[Array, Array]:
    """Velocities from the last given frame on, and which of them count: the true ball wholly inside."""
    counts = (inside[:, 1:] & inside[:, :-1])[:, GIVEN - 1 :]
    return (jnp.diff(x, axis=1) / DT)[:, GIVEN - 1 :], counts


def velocity_error(pictures, videos: Videos) -> float:
    """Mean |made - true| velocity."""
    made, counts = speeds(positions(pictures), videos.inside)
    true, _ = speeds(videos.x, videos.inside)
    return float(jnp.sum(jnp.abs(made - true) * counts) / jnp.sum(counts))


def made_velocity(pictures, videos: Videos) -> Float[Array, " n"]:
    """One velocity for each video: the mean over the frames that count."""
    made, counts = speeds(positions(pictures), videos.inside)
    return jnp.sum(made * counts, 1) / jnp.maximum(counts.sum(1), 1)


def columns(width: int, count: int, steps: int, tests: int, key) -> dict[str, float]:
    """Velocity error in and out of distribution of one network."""
    known = regimes("uniform")
    key_train, key_fit, key_test = jr.split(key, 3)
    model = train(film(known["train"], count, key_train), width, steps, key_fit)
    tested = {
        name: film(known[regime], tests, jr.fold_in(key_test, i)) for i, (name, regime) in enumerate(COLUMNS.items())
    }
    return {name: velocity_error(predict(model, videos.pictures), videos) for name, videos in tested.items()}


def constant_velocity(tests: int, key) -> dict[str, float]:
    """The same error for motion continued at the velocity parsed from the given frames: the law itself."""
    found = {}
    for i, (name, regime) in enumerate(COLUMNS.items()):
        videos = film(regimes("uniform")[regime], tests, jr.fold_in(key, i))
        x = positions(videos.pictures)
        speed = (x[:, GIVEN - 1] - x[:, 0]) / ((GIVEN - 1) * DT)
        true, counts = speeds(videos.x, videos.inside)
        found[name] = float(jnp.sum(jnp.abs(speed[:, None] - true) * counts) / jnp.maximum(jnp.sum(counts), 1))
    return found


def cases(width: int, count: int, steps: int, tests: int, key):
    """Gap, flip and conflicts: made velocity by bin, shares reversed, shifts of attribute pairs."""
    key_gap, key_flip, *keys = jr.split(key, 5)
    known = gap(*BANDS)
    model = train(film(known["train"], count, key_gap), width, steps, key_gap)
    drift = {}
    for speed in BINS:
        regime = replace(known["test"], speed=(((speed - 0.05, speed + 0.05),),))
        videos = film(regime, tests, jr.fold_in(key_gap, int(10 * speed)))
        drift[speed] = float(made_velocity(predict(model, videos.pictures), videos).mean())
    shares = []
    for name in ("train", "mirrored"):
        model = train(film(flip()[name], count, key_flip), width, steps, key_flip)
        videos = film(flip()["test"], tests, jr.fold_in(key_flip, 1))
        shares.append(float(jnp.mean(made_velocity(predict(model, videos.pictures), videos) < 0)))
    pairs = (("colour", "velocity"), ("colour", "size"), ("size", "velocity"))
    shifts = {pair: shift_of(*pair, width, count, steps, tests, one) for pair, one in zip(pairs, keys)}
    return drift, *shares, shifts


def shift_of(first: str, second: str, width: int, count: int, steps: int, tests: int, key) -> tuple[float, float]:
    """How far each attribute moves towards the training case that shares the other, mean of both test cases."""
    pair = conflict(first, second)
    keys = jr.split(key, 5)
    data = both(film(pair.train[0], count, keys[0]), film(pair.train[1], count, keys[1]))
    model = train(data, width, steps, keys[2])
    moved = {first: [], second: []}
    for case in (0, 1):
        videos = film(pair.test[case], tests, keys[3 + case])
        made = predict(model, videos.pictures)
        for attribute in (first, second):
            given = measured(attribute, videos.pictures, videos)
            moved[attribute].append(pair.shift(attribute, case, given, measured(attribute, made, videos)))
    return float(np.mean(moved[first])), float(np.mean(moved[second]))


def measured(attribute: str, pictures, videos: Videos) -> Float[Array, " n"]:
    """An attribute read from pictures, mean over the frames to come in which the true ball is wholly inside."""
    if attribute == "velocity":
        return made_velocity(pictures, videos)
    seen = videos.inside[:, GIVEN:]
    cover = jnp.clip(pictures[:, GIVEN:], 0, 1)
    if attribute == "colour":
        value = cover[..., 1].sum(-1) / jnp.maximum(cover.sum((-1, -2)), 1e-3)
    else:
        value = cover.sum((-1, -2)) * WIDTH / PIXELS / 2
    return jnp.sum(value * seen, 1) / jnp.maximum(seen.sum(1), 1)


def columns_picture(found, given) -> Picture:
    with house() as (figure, axes):
        rows = {f"{videos} videos": row for videos, row in found.items()} | {"constant velocity": given}
        for i, (name, row) in enumerate(rows.items()):
            axes.bar(np.arange(len(COLUMNS)) + 0.27 * i, [row[column] for column in COLUMNS], 0.25, label=name)
        axes.set_xticks(np.arange(len(COLUMNS)) + 0.27, list(COLUMNS))
        axes.set_ylabel("velocity error")
        axes.legend()
    return Picture("columns", figure, "Velocity error in and out of distribution", "The law itself errs nowhere.")


def drift_picture(drift) -> Picture:
    with house() as (figure, axes):
        for low, high in BANDS:
            axes.axhspan(low, high, alpha=0.25)
        axes.plot([1, 4], [1, 4], linestyle=":", linewidth=1)
        axes.plot(list(drift), list(drift.values()), marker="o")
        axes.set_xlabel("given velocity")
        axes.set_ylabel("made velocity")
    return Picture("drift", figure, "Made against given velocity", "Bands were trained on; dotted is the law.")
