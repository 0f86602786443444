"""Hits per second of the exact ball world, energy drift in float32, and the same by pymunk if it is installed.

    python benchmarks/balls.py            # about a minute
    python benchmarks/balls.py --hits 200 --balls 2 4

Each line runs `worlds` boxes of n balls until they have had about `hits` hits each, in one call. The best of three
calls counts; "per cpu s" is per second of processor time of all threads, which a crowded machine changes less.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import simulate
from kinema.simulate import ball_events
from kinema.simulate.ball_worlds import expected_hits

STEP = 0.01  # of pymunk, the usual one


def radius_of(n: int) -> float:
    """0.12 up to four balls; beyond, what fills 9% of the box."""
    return 0.12 if n <= 4 else 0.12 * (2 / n) ** 0.5


def ours(n: int, worlds: int, hits: int, gravity: float = 0.0) -> dict[str, float]:
    world = simulate.collisions(balls=n, radius=radius_of(n), gravity=gravity)
    state = jax.jit(jax.vmap(world.init))(jr.split(jr.key(0), worlds))
    if gravity:  # what starts near the floor may bounce low, and hit without end
        state["x"] = state["x"].at[..., 1].set(0.5 + state["x"][..., 1] / 4)
    columns = (world.radius[:, None], world.mass[:, None], world.size[:, None], world.gravity[None])
    rules = ball_events.Rules(walls=True, falls=world.falls, max_events=20 * hits)
    span = hits / expected_hits(world, 1.0)
    x, v = (jnp.asarray(state[name]).T for name in ("x", "v"))
    run = jax.jit(partial(ball_events.run, rules)).lower(ball_events.Bodies(*columns), jnp.array([span]), x, v)
    begin = time.process_time()
    run = run.compile()
    compiling = time.process_time() - begin
    walls, processors = [], []
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(run(ball_events.Bodies(*columns), jnp.array([span]), x, v))
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    count = int((out.wall_hits + out.pair_hits).sum())
    energy = jax.vmap(world.energy)
    drift = np.abs(energy({"x": out.x[:, 0], "v": out.v[:, 0]}) / energy(state) - 1).max()
    assert bool(out.done.all())
    return {
        "wall": count / min(walls),
        "cpu": count / min(processors),
        "hits": count / worlds,
        "drift": float(drift),
        "compile": compiling,
    }


def pymunk(n: int, hits: int) -> dict[str, float]:
    """One world, steps of 0.01, elastic; a hit is a contact that begins."""
    import pymunk as pm

    space, count = pm.Space(), [0]
    space.on_collision(None, None, begin=lambda *_: count.__setitem__(0, count[0] + 1))
    for a, b in (((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (0, 1)), ((0, 1), (0, 0))):
        wall = pm.Segment(space.static_body, a, b, 0)
        wall.elasticity = 1
        space.add(wall)
    world = simulate.collisions(balls=n, radius=radius_of(n))
    state = jax.tree.map(np.asarray, world.init(jr.key(0)))
    for place, velocity in zip(state["x"].tolist(), state["v"].tolist()):
        body = pm.Body(1, float("inf"))
        body.position, body.velocity = tuple(place), tuple(velocity)
        shape = pm.Circle(body, radius_of(n))
        shape.elasticity = 1
        space.add(body, shape)
    begin, processor = time.perf_counter(), time.process_time()
    while count[0] < hits:
        space.step(STEP)
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    energy = sum(body.velocity.length**2 for body in space.bodies) / n
    return {"wall": hits / wall, "cpu": hits / processor, "hits": hits, "drift": abs(energy - 1), "compile": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balls", type=int, nargs="+", default=[1, 2, 3, 4, 8, 16])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--hits", type=int, default=1000)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, float32")
    names = ("hits/world", 12), ("hits/s", 10), ("per cpu s", 11), ("drift", 9), ("compile", 9)
    print(f"{'':12}{'balls':>6}{'worlds':>8}" + "".join(f"{name:>{width}}" for name, width in names))

    def line(name, n, worlds, result):
        rate = f"{result['hits']:12.0f}{result['wall']:10.2g}{result['cpu']:11.2g}"
        print(f"{name:12}{n:6}{worlds:8}{rate}{result['drift']:9.1g}{result['compile']:9.1f}", flush=True)

    for worlds in args.worlds:
        for n in args.balls:
            line("ours", n, worlds, ours(n, worlds, args.hits))
        line("ours, g = 2", 1, worlds, ours(1, worlds, args.hits, gravity=2.0))
    try:
        for n in args.balls[:4]:
            line("pymunk", n, 1, pymunk(n, args.hits))
    except ImportError:
        print("pymunk is not installed: no comparison")


if __name__ == "__main__":
    main()
