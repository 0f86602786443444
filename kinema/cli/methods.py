"""Ways to steer motion toward a world's law, by name: `build(world, **settings) -> Controller`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kinema.errors import InputError, choose, unknown

if TYPE_CHECKING:
    from kinema.simulate.world import World
    from kinema.steer import Controller


def law_projection(world: "World", *, anchor: int | str = "middle", start: float = 1.0) -> "Controller":
    """Keep the state of one frame and let the world move it: the law holds by construction."""
    from kinema.steer import LawProjection

    return LawProjection(world, anchor=anchor, start=start)


def best_of(world: "World", *, n: int = 16) -> "Controller":
    """Draw n candidates for every sample and keep the one that the world replays best."""
    from kinema.steer import BestOf

    return BestOf(n, _lawful(world))


def particle_filter(
    world: "World", *, strength: float = 10.0, threshold: float = 0.5, resampler: str = "systematic"
) -> "Controller":
    """Weigh and resample particles by how well the world replays them; needs a stochastic solver."""
    from kinema.steer import ParticleFilter

    return ParticleFilter(_lawful(world), float(strength), float(threshold), resampler, resample_last=True)


METHODS: dict[str, Callable[..., "Controller"]] = {
    "law-projection": law_projection,
    "best-of": best_of,
    "particle-filter": particle_filter,
}
POPULATION = ("particle-filter",)  # samples depend on each other, so all are drawn together


def make(name: str, world: "World", settings: dict[str, Any]) -> "Controller":
    """The controller `name` for a world.

    Raises:
        InputError: unknown method or setting (the nearest is suggested), or a value that the method cannot have.
    """
    build = choose(METHODS, name, "method")
    known = [setting for setting in inspect.signature(build).parameters if setting != "world"]
    for setting in settings:
        if setting not in known:
            raise InputError(unknown(f"setting of {name}", setting, known))
    return build(world, **settings)


def _lawful(world: "World") -> Callable:
    """Minus the replay error of one motion: the higher, the closer to the law."""
    import equinox as eqx

    return eqx.Partial(_reward, world)


def _reward(world: "World", states: Any):
    from kinema.verify.laws import replay_error

    return -replay_error(world, states, world.dt)
