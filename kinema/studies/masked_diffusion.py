"""Masked diffusion without time: exact in as many calls as variables, and draws of temperature 1 in float32."""

from typing import NamedTuple

from kinema.generate.discrete.truncation import entropy
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.masked_diffusion_digits import PIXELS, Digits, on_digits
from kinema.studies.masked_diffusion_pictures import (
    digits_picture,
    error_picture,
    reveal_picture,
    temperature_picture,
)
from kinema.studies.masked_diffusion_toys import (
    BITS,
    HALF_STEPS,
    ZIPF,
    Draws,
    Exactness,
    Law,
    on_draws,
    on_joint,
    one_stage_laws,
)
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """How much a preset does: draws of a joint law, parallel and ancestral steps tried; steps of the law of tokens, how
    many tokens have their temperature measured, and how many in the slow half-precision draws; length and steps of the
    timed samplers; the digits' network, training steps and samples, and the numbers of calls but for that of first
    hitting."""

    draws: int
    parallel: tuple[int, ...]
    ancestral: tuple[int, ...]
    steps: tuple[int, ...]
    tokens: int
    half: int
    timed: tuple[int, int]
    digits: tuple[int, int]
    digits_steps: int
    digits_drawn: int
    calls: tuple[int, ...]


STEPS = (16, 128, 1024, 4096)
SIZES = {
    "smoke": Size(2000, (), (4,), (16, 64), 2000, 100, (4, 8), (16, 1), 20, 20, ()),
    "quick": Size(100_000, (2,), (4, 64), STEPS, 50_000, 1000, (64, 256), (192, 2), 700, 500, (1, 4, 16)),
    "full": Size(
        *(1_000_000, (1, 2), (1, 2, 4, 8, 16, 32, 64, 128)),
        *(STEPS, 2_000_000, 20_000, (256, 1024)),
        *((768, 3), 20_000, 5000, (1, 2, 4, 8, 16, 32)),
    ),
}


@study(
    "masked-diffusion-fhs",
    "Zheng et al., 2024, arXiv 2409.02908",
    "A masked diffusion needs no time: revealing one variable a call draws from the exact law in as many calls as "
    "variables, where ancestral sampling needs many more steps; and drawing values apart from staying masked keeps the "
    "temperature at 1, which float32 lowers.",
    title="Masked diffusion, first hitting",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    laws, most = one_stage_laws(size.steps), size.steps[-1]
    exact = [on_joint(size.draws, size.parallel, size.ancestral, seed) for seed in seeds]
    draws = [on_draws(size.tokens, most, size.half, *size.timed, seed) for seed in seeds]
    digits = [on_digits(size.digits, size.digits_steps, size.digits_drawn, size.calls, seed) for seed in seeds]
    default = laws[BITS["JAX float32"], most].temperature
    return Evidence(
        metrics=[
            Metric(
                "distance to a joint law, 4 calls",
                [one.sampled["first_hitting", 4] for one in exact],
                0.011,
                baseline=[one.sampled["ancestral", 4] for one in exact],
                against="ancestral, 4 steps",
            ),
            Metric("the same over the least that so many draws allow", [one.above_floor for one in exact], 1.25),
            Metric("ancestral steps for an error below that least", [one.needed for one in exact], 32, ">="),
            Metric("bound of the exact network less the entropy", [one.bound_gap for one in exact], 1e-4, unit="nats"),
            Metric(
                "effective temperature's distance from 1",
                [abs(one.temperature - 1) for one in draws],
                0.005,
                baseline=[1 - default],
                against=f"JAX's default draw, {most} steps, exact",
            ),
            Metric(f"effective temperature of JAX's default draw, {most} steps, exact", default, 0.9),
            Metric(
                "time of categorical draws, published over first hitting",
                [one.published_s / one.ours_s for one in draws],
                20,
                ">=",
                unit="x",
            ),
            Metric(
                "bound on digits, with a time input over without, distance from 1",
                [abs(one.timed_bound / one.bound - 1) for one in digits],
                0.01,
            ),
            Metric(
                "digits by first hitting, distance to held-out digits",
                [one.apart[-1] for one in digits],
                baseline=[one.apart[0] for one in digits],
                against="the fewest calls",
            ),
        ],
        figures=[
            error_picture(exact),
            temperature_picture(laws, size.steps, draws),
            reveal_picture(digits[0]),
            digits_picture(digits[0], size.calls),
        ],
        tables=[error_table(exact), temperature_table(laws, size.steps, draws), digits_table(digits, size.calls)],
        settings={
            "joint law": f"4 variables of 3 categories, Dirichlet(0.3), {size.draws} draws; total variation",
            "ancestral": "cached: the same law, whose steps without an event cost no call",
            "tokens": f"Zipf(1) over {len(ZIPF)} categories, entropy {entropy(ZIPF):.4f} nats",
            "timed": f"one sequence of {size.timed[0]} tokens, {size.timed[1]} steps, no network, one process",
            "digits": f"8 x 8, four grey levels, perceptron {size.digits[0]} x {size.digits[1]}, "
            f"{size.digits_steps} steps, {size.digits_drawn} drawn",
        },
    )


def error_table(found: list[Exactness]) -> Table:
    sides = [one.sampled for one in found], [one.exact for one in found]
    rows = [
        (how.replace("_", " "), calls, *(Spread.of(part[how, calls] for part in parts) for parts in sides))
        for how, calls in found[0].sampled
    ]
    floor = ("as many independent draws", None, Spread.of(one.floor for one in found), 0.0)
    return Table("Distance to a joint law", ("sampler", "steps", "measured", "by enumeration"), [*rows, floor])


def temperature_table(laws: dict[tuple[int, int], Law], steps: tuple[int, ...], draws: list[Draws]) -> Table:
    named = [(f"{name}, {bits} bits", bits) for name, bits in BITS.items()] + [("clocks of 32 bits", 0)]
    exact = [(name, *(laws[bits, n].temperature for n in steps), laws[bits, steps[-1]].entropy) for name, bits in named]
    unknown = (None,) * len(steps)
    half = Spread.of(one.half_temperature for one in draws)
    ours, surprise = (Spread.of(getattr(one, name) for one in draws) for name in ("temperature", "surprise"))
    columns = ("numbers from", *(f"{n} steps" for n in steps), f"entropy at {steps[-1]}, nats")
    measured = [
        (f"measured: JAX's float16, {HALF_STEPS} steps", half, *unknown),
        ("measured: values drawn apart", *unknown[1:], ours, surprise),
    ]
    return Table("Effective temperature of draws that include staying masked", columns, [*exact, *measured])


def digits_table(found: list[Digits], calls: tuple[int, ...]) -> Table:
    rows = [
        (count, Spread.of(one.apart[i] for one in found), Spread.of(one.variety[i] for one in found))
        for i, count in enumerate((*calls, PIXELS))
    ]
    real = ("held-out digits", Spread.of(one.real_apart for one in found), Spread.of(one.real_variety for one in found))
    columns = ("calls", "distance to held-out digits", "entropy of a digit's levels, nats")
    return Table("Digits", columns, [*rows, real])
