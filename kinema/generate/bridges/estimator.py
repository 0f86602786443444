"""The light bridge behind the conventions of scikit-learn, which is not needed for it."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.errors import InputError, unknown
from kinema.generate.bridges.fitting import fit_light_bridge
from kinema.generate.bridges.light import LightBridge, check_times
from kinema.learn.history import History


class LightBridgeEstimator:
    """Unpaired translation from samples X to samples Y: `fit(X, Y)`, then `transform(X)`.

    Parameters are those of `fit_light_bridge`, and are checked by `fit`. `random_state` is the seed of everything
    random; the same call gives the same result. `warm_start`: a second `fit` goes on from the bridge of the first,
    also with another `eps`. Learnt: `bridge_` (a `LightBridge`, and so a law), `history_`, `n_features_in_`.

    >>> X, Y = jr.normal(jr.key(0), (400, 2)), 3 + jr.normal(jr.key(1), (400, 2))
    >>> bridge = LightBridgeEstimator(eps=0.5, components=2, steps=500, rate=0.05, progress=False).fit(X, Y)
    >>> bridge.transform(X).shape, bridge.sample_bridge(X, [0.0, 0.5, 1.0]).shape
    ((400, 2), (400, 3, 2))
    """

    bridge_: LightBridge
    history_: History
    n_features_in_: int

    def __init__(
        self,
        eps: float = 1.0,
        components: int = 50,
        covariance: str = "diagonal",
        steps: int = 10_000,
        batch_size: int = 512,
        rate: float = 1e-2,
        validation: float = 0.1,
        anneal_from: float | None = None,
        warm_start: bool = False,
        random_state: int = 0,
        progress: bool = True,
    ):
        self.eps = eps
        self.components = components
        self.covariance = covariance
        self.steps = steps
        self.batch_size = batch_size
        self.rate = rate
        self.validation = validation
        self.anneal_from = anneal_from
        self.warm_start = warm_start
        self.random_state = random_state
        self.progress = progress

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every parameter of the constructor by name."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **params: Any) -> "LightBridgeEstimator":
        """Change parameters; what was learnt stays until the next `fit`.

        Raises:
            InputError: a name that is not a parameter.
        """
        for name, value in params.items():
            if name not in _parameters():
                raise InputError(unknown("parameter", name, _parameters()))
            setattr(self, name, value)
        return self

    def fit(self, X: Any, Y: Any) -> "LightBridgeEstimator":
        """Learn the bridge from the rows of X `(n, d)` to those of Y `(m, d)`.

        Raises:
            InputError, NotFinite: as `fit_light_bridge`.
        """
        options = self.get_params()
        warm = options.pop("warm_start") and hasattr(self, "bridge_")
        key = jr.key(options.pop("random_state"))
        found = fit_light_bridge(X, Y, start=self.bridge_ if warm else None, key=key, **options)
        self.bridge_, self.history_ = found
        self.n_features_in_ = self.bridge_.dim
        return self

    def transform(self, X: Any) -> Float[Array, "n d"]:
        """One draw of the plan for each row of X. The mean instead: `bridge_.conditional(x).mean`."""
        X = self._rows("X", X)
        return _transform(self.bridge_, X, self._keys(len(X)))

    def fit_transform(self, X: Any, Y: Any) -> Float[Array, "n d"]:
        """`fit(X, Y).transform(X)`."""
        return self.fit(X, Y).transform(X)

    def drift(self, t: float, X: Any) -> Float[Array, "n d"]:
        """Drift of the bridge at time t in [0, 1] and the rows of X."""
        check_times([t])
        return _drift(self.bridge_, t, self._rows("X", X))

    def sample_bridge(self, X: Any, ts: Any) -> Float[Array, "n frames d"]:
        """A path from each row of X, exact at the times `ts`, which increase within [0, 1].

        The end of a path is the row's `transform`.
        """
        X = self._rows("X", X)
        return _sample_bridge(self.bridge_, jnp.asarray(check_times(ts), X.dtype), X, self._keys(len(X)))

    def log_prob(self, X: Any, Y: Any) -> Float[Array, " n"]:
        """Log density of each row of Y as the end of a bridge from the same row of X, nats."""
        X, Y = self._rows("X", X), self._rows("Y", Y)
        if len(X) != len(Y):
            raise InputError(f"X and Y must have the same number of rows, got {len(X)} and {len(Y)}")
        return _log_prob(self.bridge_, X, Y)

    def __repr__(self) -> str:
        defaults = inspect.signature(LightBridgeEstimator).parameters
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name].default]
        return f"LightBridgeEstimator({', '.join(given)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "bridge_")

    def __sklearn_tags__(self):
        # only scikit-learn calls this, so it is there
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=True), transformer_tags=TransformerTags())

    def _keys(self, count: int) -> Array:
        return jr.split(jr.fold_in(jr.key(self.random_state), 1), count)

    def _rows(self, name: str, rows: Any) -> Float[Array, "n d"]:
        """A matrix of the dimension that was fitted.

        Raises:
            InputError: not fitted; another shape; a row that is not finite.
        """
        if not hasattr(self, "bridge_"):
            raise InputError("this LightBridgeEstimator is not fitted; call fit(X, Y) first")
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_:
            raise InputError(f"{name} must have shape (n, {self.n_features_in_}), got {rows.shape}")
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            raise InputError(f"{name} must be finite, row {int(np.argmin(finite))} is not")
        return jnp.asarray(rows, self.bridge_.centres.dtype)


def _parameters() -> list[str]:
    return list(inspect.signature(LightBridgeEstimator).parameters)


@jax.jit
def _transform(bridge: LightBridge, X: Array, keys: Array) -> Array:
    return _sample_bridge(bridge, jnp.ones(1, X.dtype), X, keys)[:, 0]


@jax.jit
def _sample_bridge(bridge: LightBridge, ts: Array, X: Array, keys: Array) -> Array:
    return jax.lax.map(lambda row: bridge.sample_bridge(ts, row[0], key=row[1]), (X, keys), batch_size=4096)


@jax.jit
def _drift(bridge: LightBridge, t: Array, X: Array) -> Array:
    return jax.vmap(lambda x: bridge.drift(t, x))(X)


@jax.jit
def _log_prob(bridge: LightBridge, X: Array, Y: Array) -> Array:
    return jax.vmap(lambda x, y: bridge.conditional(x).log_prob(y))(X, Y)
