"""Every optimizer of this folder, ready with a learning rate alone."""

from collections.abc import Callable, Mapping

import optax

from kinema.learn.optim.adamp import adamp, sgdp
from kinema.learn.optim.adan import adan
from kinema.learn.optim.convex import L1
from kinema.learn.optim.lion_k import lion_k


def _lion_k(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return lion_k(learning_rate, L1())


ALL_OPTIMIZERS: Mapping[str, Callable[[float], optax.GradientTransformation]] = {
    "adamp": adamp,
    "sgdp": sgdp,
    "adan": adan,
    "lion_k": _lion_k,
}
