"""Packages whose names are imported when first used."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def attach(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package from a table {module: its public names}.

    A module listed without names is public itself.
    """
    home = {name: module for module, public in names.items() for name in (public or (module,))}

    def getattr_(name: str):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{home[name]}")
        return module if name == home[name] else getattr(module, name)

    return getattr_, lambda: sorted(home), sorted(home)
