"""Names for shell completion and listings, found without importing JAX."""

import re
from pathlib import Path

KINEMA = Path(__file__).parent.parent


def worlds() -> list[str]:
    """Names that `simulate.make` knows."""
    return _registered("simulate", "world")


def models() -> list[str]:
    """Names that `models.make` knows."""
    return _registered("models", "model")


def studies() -> list[str]:
    """Slugs of the studies."""
    from kinema.studies import catalog

    return list(catalog())


def solvers() -> list[str]:
    """Names that `solver.make` knows."""
    from kinema.generate.solver import SOLVERS  # NumPy only

    return sorted(SOLVERS)


def grids() -> list[str]:
    """Names of time grids."""
    from kinema.generate.solver.grids import GRIDS  # NumPy only

    return sorted(GRIDS)


def paths() -> list[str]:
    """Names of paths from source to data."""
    return [
        "bridge",
        "edm",
        "interpolant",
        "linear",
        "mean-reverting",
        "mirror",
        "pfgmpp",
        "sub-vp",
        "trig",
        "ve",
        "vp",
    ]


def methods() -> list[str]:
    """Ways to steer."""
    from kinema.cli.methods import METHODS

    return sorted(METHODS)


def _registered(folder: str, decorator: str) -> list[str]:
    """First arguments of `@decorator("name", ...)` in the source of a folder."""
    pattern = re.compile(rf'^@(?:\w+\.)?{decorator}\(\s*"([^"]+)"', re.MULTILINE)
    return sorted({name for file in (KINEMA / folder).rglob("*.py") for name in pattern.findall(file.read_text())})
