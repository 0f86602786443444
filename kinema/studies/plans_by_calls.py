"""Many plans by name and number of calls, for one compiled program."""

from collections.abc import Mapping

from kinema.generate.alike import bind_alike
from kinema.generate.generator import AbstractGenerator
from kinema.generate.rows import Rows
from kinema.generate.solver import Plan


def bind_by_calls(plans: Mapping[tuple[str, int], Plan], gen: AbstractGenerator) -> dict[tuple[str, int], Rows]:
    """Plans bound alike: `sample` compiles once for all of them; short ones go on with calls that change nothing."""
    bound = bind_alike({f"{name}, {calls} calls": plan for (name, calls), plan in plans.items()}, gen)
    return dict(zip(plans, bound.values()))
