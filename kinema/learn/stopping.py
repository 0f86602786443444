"""When a run should end before its last step."""

import equinox as eqx
import numpy as np

from kinema.errors import InputError, choose
from kinema.learn.history import History


class Patience(eqx.Module):
    """Early stopping: True once a probe's value has not improved by more than `least` for `looks` looks in a row.

    `value` is "PROBE/LEAF", or "PROBE" where the probe measures one number. Smaller is better unless `higher`. For
    `fit(..., stop=Patience("validation/loss"))`.

    >>> from kinema.learn import ProbeRecord
    >>> seen = ProbeRecord(np.arange(5) * 100, {".": np.array([3.0, 1.0, 1.2, 1.1, 1.3])})
    >>> history, patience = History({}, {"validation": seen}), Patience("validation", looks=3)
    >>> patience(history), patience.best_step(history)
    (True, 100)

    Raises:
        InputError: looks below 1 or least negative; when asked, a value that no probe measures or that is no number.
    """

    value: str
    looks: int = 5
    least: float = 0.0
    higher: bool = False

    def __check_init__(self):
        if self.looks < 1 or not self.least >= 0:
            raise InputError(f"Patience needs looks >= 1 and least >= 0, got looks={self.looks}, least={self.least}")

    def __call__(self, history: History) -> bool:
        return len(self._seen(history)[1]) - 1 - self._best(history) >= self.looks

    def best_step(self, history: History) -> int:
        """The step at which the value was best; later ones that are better by no more than `least` do not count."""
        return int(self._seen(history)[0][self._best(history)])

    def _seen(self, history: History) -> tuple[np.ndarray, np.ndarray]:
        name, _, leaf = self.value.partition("/")
        record = choose(history.probes, name, "probe")
        values = choose(record.values, leaf or ".", f"value of probe {name!r}")
        if values.ndim != 1:
            raise InputError(f"{self.value} must be one number a look, got shape {values.shape[1:]}")
        return record.steps, -values if self.higher else values

    def _best(self, history: History) -> int:
        best, values = 0, self._seen(history)[1]
        for k, value in enumerate(values):
            if value < values[best] - self.least or np.isnan(values[best]):
                best = k
        return best
