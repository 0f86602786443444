"""Worlds: laws whose motion is known, to learn from and to be judged by."""

from kinema.simulate.ball_starts import Gas, HeadOn, Launch
from kinema.simulate.ball_worlds import collisions, head_on, parabola, uniform_motion
from kinema.simulate.balls import Balls, Event
from kinema.simulate.render import draw, parse
from kinema.simulate.world import Contacts, Origin, Replay, World, make, world, worlds

__all__ = [
    "Balls",
    "Contacts",
    "Event",
    "Gas",
    "HeadOn",
    "Launch",
    "Origin",
    "Replay",
    "World",
    "collisions",
    "draw",
    "head_on",
    "make",
    "parabola",
    "parse",
    "uniform_motion",
    "world",
    "worlds",
]
