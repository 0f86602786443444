"""Training between two data sets beside torchcfm and flow_matching: one network, loss and optimizer, rows drawn alike.

The peers' matchers draw times, noise and targets as in their examples, around a step of Adam. First both sides get the
same times and noise, and their losses must agree. Two losses: the straight flow, and the Brownian one with a second
output for the noise, which torchcfm alone has too, here for independent pairs, without its transport plan. After equal
steps the networks of all sides are sampled by one solver: results/interpolants_quality.json and a figure for the docs.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import torch
from flow_matching.path import CondOTProbPath
from torchcfm import conditional_flow_matching as torchcfm

from benchmarks.harness import FIGURE, RESULTS, Row, compare
from benchmarks.networks import in_torch, weights
from kinema.generate import Interpolant, Interpolating, sample
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.learn import BackPropagation, advance, begin
from kinema.learn.trainable import Trainable
from kinema.motion import integrate
from kinema.studies.stochastic_interpolants_sets import checkerboard, dynamics, eight
from kinema.verify import sliced_wasserstein

SIZES, DEPTH = ((2, 64, 256), (64, 256, 256)), 3  # numbers of a sample, width, batch: the first are torchcfm's
STEPS, RATE, ROWS = 50, 1e-3, 10_000
TRAINED, SEEDS, DRAWN, NOISE = 4000, 3, 10_000, 0.5
PATHS = {"flow": Interpolant("linear", "none"), "noisy": Interpolant("linear", "sqrt")}


class Plain(AbstractGenerator):
    """A perceptron of x and t, as the peers' examples have it: two outputs on the noisy path."""

    path: Interpolant
    layers: list
    predicts: str | tuple[str, str] = eqx.field(static=True)
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x, cond=None, x0=None):
        h = jnp.append(x, t)
        for w, b in self.layers[:-1]:
            h = jax.nn.silu(h @ w + b)
        out = h @ self.layers[-1][0] + self.layers[-1][1]
        return out if isinstance(self.predicts, str) else Heads(*jnp.split(out, 2))


def run(seconds: float = 3.0) -> list[Row]:
    rows = []
    for dim, width, batch in SIZES:
        x0, x1 = np.random.default_rng(dim).normal(size=(2, ROWS, dim)).astype(np.float32)
        for kind, peers in (("flow", ("torchcfm", "flow_matching")), ("noisy", ("torchcfm",))):
            numbers = layers(kind, dim, width)
            ours = in_kinema(kind, numbers, x0, x1, batch)
            for peer in peers:
                apart = disagreement(kind, peer, numbers, x0[:batch], x1[:batch])
                theirs = in_peer(kind, peer, numbers, x0, x1, batch)
                case = f"{STEPS} steps, {kind}, {dim} wide {width} x {batch}"
                row = compare(
                    case, peer, lambda o=ours: o(0)[0], theirs, target=2, seconds=seconds, tolerance=None
                )  # each draws its own noise
                rows.append(dataclasses.replace(row, difference=apart))
    quality()
    return rows


def layers(kind: str, dim: int, width: int, seed: int = 0):
    return weights((dim + 1, *(width,) * DEPTH, dim * (1 + (kind == "noisy"))), seed)


def generator(kind: str, numbers) -> Plain:
    predicts = "velocity" if kind == "flow" else ("velocity", "noise")
    return Plain(PATHS[kind], [(jnp.asarray(w), jnp.asarray(b)) for w, b in numbers], predicts)


def in_kinema(kind: str, numbers, x0, x1, batch: int, objective: Interpolating | None = None, steps: int = STEPS):
    """A function of a seed: a run of `steps`, its weights of the last layer first, then all."""
    objective = objective or Interpolating(coupling="paired", antithetic=False)
    params, static = Trainable(("layers/*",)).split(generator(kind, numbers))
    optimizer, source, sides = optax.adam(RATE), BackPropagation(objective), (jnp.asarray(x0), jnp.asarray(x1))

    @jax.jit
    def learnt(key):
        key_rows, key_steps = jr.split(key)
        rows = jr.randint(key_rows, (steps, 2, batch), 0, ROWS)

        def step(state, rows):
            pair = {"x0": sides[0][rows[0]], "x1": sides[1][rows[1]]}
            return advance(state, static, pair, key_steps, source=source, optimizer=optimizer, ema=None)

        return jax.lax.scan(step, begin(optimizer, params, None), rows)[0].params.layers

    def once(seed: int):
        made = jax.tree.map(np.asarray, learnt(jr.key(seed)))
        return made[-1][0], made

    return once


def matcher(kind: str, peer: str) -> Callable:
    """(x0, x1, t or None) -> t, x_t, target of the velocity, noise or None, by the peer."""
    if peer == "flow_matching":
        path = CondOTProbPath()

        def matched(x0, x1, t=None, noise=None):
            drawn = path.sample(x_0=x0, x_1=x1, t=torch.rand(len(x0)) if t is None else t)
            return drawn.t, drawn.x_t, drawn.dx_t, None

        return matched
    if kind == "flow":
        plain, of = torchcfm.ConditionalFlowMatcher(0.0), torchcfm.ConditionalFlowMatcher
    else:
        plain, of = torchcfm.SchrodingerBridgeConditionalFlowMatcher(1.0), torchcfm.ConditionalFlowMatcher

    def matched(x0, x1, t=None, noise=None):
        if noise is not None:
            plain.sample_noise_like = lambda x: noise
        drawn = of.sample_location_and_conditional_flow(plain, x0, x1, t, return_noise=True)
        return *drawn[:3], drawn[3] if kind == "noisy" else None

    return matched


def loss_of(net, t, x, velocity, noise) -> torch.Tensor:
    out = net(torch.cat([x, t[:, None]], 1))
    if noise is None:
        return (out - velocity).square().mean()
    first, second = out.chunk(2, 1)
    return (first - velocity).square().mean() + (second - noise).square().mean()


def in_peer(kind: str, peer: str, numbers, x0, x1, batch: int, steps: int = STEPS, whole: bool = False):
    """A run of `steps` from the same weights: the last layer as an array, or the whole network."""
    source, target, match = torch.tensor(x0), torch.tensor(x1), matcher(kind, peer)

    def once():
        net = in_torch(numbers, torch.nn.SiLU).requires_grad_(True)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(steps):
            rows = torch.randint(len(source), (2, batch))
            loss = loss_of(net, *match(source[rows[0]], target[rows[1]]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net if whole else net[-1].weight.detach().numpy()

    return once


def disagreement(kind: str, peer: str, numbers, x0, x1) -> float:
    """Between the losses at the same rows, times and noise, relative.

    Raises:
        AssertionError: more than rounding.
    """
    gen, n = generator(kind, numbers), len(x0)
    keys, t = jr.split(jr.key(1), n), jnp.linspace(0.05, 0.95, n)
    objective = Interpolating(coupling="paired", antithetic=False)
    found = jax.vmap(lambda k, t, x0, x1: objective.one(gen, k, t, {"x0": x0, "x1": x1}))(keys, t, x0, x1)
    mine = float(sum(found.values()).mean())
    noise = jax.vmap(gen.path.noise.sample)(keys, jnp.asarray(x1))
    x0, x1, t, noise = (torch.tensor(np.asarray(one)) for one in (x0, x1, t, noise))
    theirs = float(loss_of(in_torch(numbers, torch.nn.SiLU), *matcher(kind, peer)(x0, x1, t, noise)))
    apart = abs(mine - theirs) / theirs
    if not apart < 1e-5:
        raise AssertionError(f"{kind}: losses of Kinema and {peer} differ by {apart:.2g}")
    return apart


def quality() -> None:
    """Eight clusters to a checkerboard: distance of 10,000 samples after equal steps, and what the training took."""
    found = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        keys = jr.split(jr.key(seed), 6)
        x0, x1 = np.asarray(eight(keys[0], ROWS)), np.asarray(checkerboard(keys[1], ROWS))
        starts, truth, other = eight(keys[2], DRAWN), checkerboard(keys[3], DRAWN), checkerboard(keys[4], DRAWN)

        def distance(x, truth=truth, key=keys[5]):
            return float(sliced_wasserstein(x, truth, key))

        def judged(kind, numbers, noise, starts=starts, distance=distance):
            gen = generator(kind, numbers)
            if not noise:
                return distance(followed(gen, starts))
            return distance(sample(gen, dynamics(gen.path, 100, noise), DRAWN, key=jr.key(9), shape=(2,), x0=starts).x)

        found.setdefault("another draw", []).append((0.0, distance(other)))
        for peer in ("torchcfm", "flow_matching"):
            train = in_peer("flow", peer, layers("flow", 2, 64, seed), x0, x1, 256, TRAINED, whole=True)
            begun = time.perf_counter()
            net = train()
            took = time.perf_counter() - begun
            linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
            numbers = [(one.weight.detach().numpy().T, one.bias.detach().numpy()) for one in linear]
            found.setdefault(f"{peer}, flow", []).append((took, judged("flow", numbers, 0.0)))
        objectives = {
            "flow": Interpolating(coupling="paired", antithetic=False),
            "noisy": Interpolating(coupling="paired"),
        }
        for kind, objective in objectives.items():
            train = in_kinema(kind, layers(kind, 2, 64, seed), x0, x1, 256, objective, TRAINED)
            begun = time.perf_counter()
            numbers = train(seed)[1]
            took = time.perf_counter() - begun
            noise, name = (0.0, "Kinema, flow") if kind == "flow" else (NOISE, f"Kinema, noise e = {NOISE:g}")
            found.setdefault(name, []).append((took, judged(kind, numbers, noise)))
    for name, pairs in found.items():
        took, apart = np.array(pairs).T
        distance = f"sliced Wasserstein {apart.mean():.4f} +- {apart.std(ddof=1):.4f}"
        print(f"{name:28s} {TRAINED} steps in {took.mean():6.2f} s, {distance}")
    RESULTS.mkdir(exist_ok=True)
    columns = ["seconds, with compilation", "sliced Wasserstein"]
    record = {"steps": TRAINED, "seeds": SEEDS, "columns": columns, "found": found}
    (RESULTS / "interpolants_quality.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(found, FIGURE.with_name("interpolants.svg"))


@eqx.filter_jit
def followed(gen: Plain, starts):
    """Where the flow carries the starts."""
    law, ts = gen.law(), jnp.array([0.0, 1.0])
    return jax.vmap(lambda x: integrate(law, x, ts, method="tsit5", dt=0.02).states[-1])(starts)


def draw(found: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Distance against seconds of training, a point a seed."""
    from kinema.report.charts import house

    floor = np.mean([apart for _, apart in found["another draw"]])
    with house(5.0, 3.0) as (figure, axes):
        for i, (name, pairs) in enumerate((name, pairs) for name, pairs in found.items() if name != "another draw"):
            axes.plot(*zip(*pairs), "o", color=f"C{i}", label=name)
        axes.axhline(floor, color="0.5", ls=":", label="another draw of the data")
        axes.set(xlim=(0, None), ylim=(0, None), xlabel=f"seconds for {TRAINED} steps", ylabel="sliced Wasserstein")
        figure.legend(loc="outside upper left", ncols=3, fontsize=7)
        figure.savefig(file, format="svg", metadata={"Date": None})
