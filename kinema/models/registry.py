"""Networks by name: a run folder stores a name, a shape and sizes (JSON), never code."""

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import PRNGKeyArray

from kinema.errors import InputError, choose, unknown
from kinema.models.channels import Channels
from kinema.models.checks import as_shape, check_positive

Builder = TypeVar("Builder", bound=Callable[..., eqx.Module])

_BUILDERS: dict[str, Callable[..., eqx.Module]] = {}
_NOT_SIZES = ("self", "shape", "key")


def model(name: str) -> Callable[[Builder], Builder]:
    """Register a builder `(shape, *, key, **sizes) -> net` under `name`. Its sizes have defaults and are JSON-able."""

    def register(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise InputError(f"a model named {name!r} is registered already")
        _BUILDERS[name] = builder
        return builder

    return register


def names() -> tuple[str, ...]:
    """Names that `make` knows, sorted."""
    return tuple(sorted(_BUILDERS))


def make(name: str, *, shape: Sequence[int], key: PRNGKeyArray, joined: int = 1, outputs: int = 1, **sizes: Any) -> Any:
    """The network `name` for one sample of `shape`: `net(x, signal, cond=None) -> array like x`.

    `joined` 2 makes a network that takes two samples joined on the last axis, as paths with a known start need;
    `outputs` 2 one that returns a pair of arrays.

    >>> net = make("mlp", shape=(2,), width=64, key=jax.random.key(0))
    >>> net(jnp.ones(2), 0.5)
    Array([0., 0.], dtype=float32)

    Raises:
        InputError: unknown name or size, a size or shape that the network cannot have.
    """
    check_positive(joined=joined, outputs=outputs)
    full = spec(name, shape=shape, **sizes)
    del full["name"]
    shape, wider = tuple(full.pop("shape")), max(joined, outputs)
    if wider == 1:
        return _BUILDERS[name](shape, key=key, **full)
    if not shape:
        raise InputError("shape must have an axis to join samples or outputs on, got ()")
    return Channels(_BUILDERS[name]((*shape[:-1], wider * shape[-1]), key=key, **full), joined, outputs)


def spec(name: str, *, shape: Sequence[int], joined: int = 1, outputs: int = 1, **sizes: Any) -> dict[str, Any]:
    """Everything that `make` needs but the key, defaults filled in, ready for JSON: `make(**spec, key=key)`.

    >>> spec("mlp", shape=(2,), width=64)["depth"]
    3

    Raises:
        InputError: unknown name or size, shape not of positive integers, a size that JSON cannot hold.
    """
    defaults = _sizes(choose(_BUILDERS, name, "model"))
    for given, value in sizes.items():
        if given not in defaults:
            raise InputError(unknown(f"size of model {name!r}", given, defaults))
        if not _is_json(value):
            raise InputError(f"{given} must be a number, a string, None or a list of these, got {type(value).__name__}")
    full = defaults | {given: _plain(value) for given, value in sizes.items()}
    wider = {size: count for size, count in (("joined", joined), ("outputs", outputs)) if count > 1}
    return {"name": name, "shape": list(as_shape(shape)), **wider, **full}


def _sizes(builder: Callable[..., Any]) -> dict[str, Any]:
    function = builder.__init__ if inspect.isclass(builder) else builder
    parameters = inspect.signature(function).parameters.values()
    return {p.name: _plain(p.default) for p in parameters if p.name not in _NOT_SIZES}


def _is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_json(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, Integral))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
