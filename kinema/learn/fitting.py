"""The one training loop: jitted steps scanned in chunks, with average, probes, checkpoints and exact resume."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError, NotFinite
from kinema.learn.batches import Batches, Layout
from kinema.learn.checkpoint import Checkpoints
from kinema.learn.chunk import Chunks, Fixed
from kinema.learn.gradient import GradientSource, Objective, as_source
from kinema.learn.history import History, Recorder
from kinema.learn.identity import identity
from kinema.learn.probe import Probe, Snapshot
from kinema.learn.progress import Interrupt, Progress
from kinema.learn.step import LearnState, begin, continued
from kinema.learn.trainable import Trainable, Where

SECONDS = 60.0  # between checkpoints, if nothing else is said


@dataclass(frozen=True)
class Fit:
    """What a run came to. `ema` is the model with averaged weights (the model itself if no average was kept).

    `fit(..., state=run.state)` goes on from here, `transplant` carries the state to a changed model.
    """

    model: PyTree
    ema: PyTree
    history: History
    step: int
    state: LearnState


def fit(
    model: PyTree,
    objective: Objective | GradientSource,
    data: PyTree = None,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    trainable: Trainable | Where = None,
    ema: float | None = 0.999,
    chunk: int = 50,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    probes: Sequence[Probe] = (),
    stop: Callable[[History], bool] | None = None,
    state: LearnState | None = None,
    progress: bool = True,
) -> Fit:
    """Move the parameters of `model` down the gradient of `objective(model, batch, key) -> (loss, metrics)`.

    `data` is a PyTree of arrays with one leading axis of rows; a batch has the same structure with `batch_size` rows.
    None: the objective makes its own points, and gets None. `objective` may be any `GradientSource`. Clipping and
    schedules are part of the optax `optimizer`; `learn.adam(rate, steps)` is a good first one.

    Steps run in compiled chunks of `chunk`; loss and metrics come back once a chunk. A last chunk of another length is
    compiled for itself, so let `chunk` divide `steps`. A second call with the same objective, optimizer and shapes
    does not compile again. With several devices the rows of a batch are spread over them.

    With a `folder`, a checkpoint is written at the end of the chunk every `checkpoint_every` steps (None: once a
    minute), at the end and on Ctrl-C. `resume=True` goes on from the newest, to the same bits as a run that was never
    stopped; an empty folder starts a run.

    `stop(history)` is asked after every chunk in which a probe looked, and ends the run if it says so: see `Patience`.
    `state` is where the run begins in place of step 0, its parameters in place of the model's; `steps` counts from the
    very beginning, the history from there.

    >>> import jax.numpy as jnp, jax.random as jr, optax
    >>> square = lambda w, batch, key: (jnp.mean((batch["x"] @ w - batch["y"]) ** 2), {})
    >>> data = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0])}
    >>> run = fit(jnp.zeros(2), square, data, optimizer=optax.sgd(0.5), steps=50, batch_size=2, key=jr.key(0))
    >>> run.model.round(3).tolist()
    [1.0, 2.0]

    Raises:
        InputError: an argument is not acceptable; data is empty, uneven or not finite; the folder holds a run (another
            run, with `resume`) or cannot be written.
        NotFinite: the loss or a parameter became NaN or infinite; step, rows and last good checkpoint are named.
        StoreCorrupt: with `resume`, every checkpoint is damaged.
        OSError: a checkpoint could not be written; the last good one is named.
        KeyboardInterrupt: Ctrl-C, after the checkpoint was written. A second Ctrl-C does not wait.
    """
    _check(steps, batch_size, data, key, ema, chunk, resume, folder, checkpoint_every, probes, stop)
    source = as_source(objective)
    trainable = trainable if isinstance(trainable, Trainable) else Trainable(trainable)
    params, static = trainable.split(model)
    layout = Layout.over(batch_size or 0)
    batches = Batches(data, batch_size or 0, key, layout)
    state = begin(optimizer, params, ema) if state is None else continued(state, begin(optimizer, params, ema))
    recorder = Recorder()

    with contextlib.ExitStack() as stack:
        store = None
        if folder is not None:
            who = identity(state, source, optimizer, data, batch_size=batch_size or 0, key=key, ema=ema)
            store = stack.enter_context(Checkpoints.open(folder, who, resume=resume))
            state = store.restore_or_begin(state, static, recorder)
        start = int(state.step)
        if start > steps:
            where = "the run" if folder is None else f"the run in {folder}"
            raise InputError(f"{where} is at step {start} already, steps={steps} is less")
        chunks = Chunks(Fixed(static, batches.table, key, source, optimizer, ema, layout), state)
        line = stack.enter_context(Progress(steps, start=start, show=progress))
        interrupt = stack.enter_context(Interrupt())
        run = _Run(chunks, start, recorder, batches, store, line, stop)
        if start == 0:
            run.look([probe for probe in probes if probe.due(-1, 0)])
        elif store is not None:
            run.ask()
        while run.step < steps and not run.over and not interrupt.requested:
            before = run.step
            run.go(min(chunk - before % chunk, steps - before))
            last = run.step == steps
            due = [probe for probe in probes if last or probe.due(before, run.step)]
            save = last or run.worth_saving(before, checkpoint_every)
            run.settle(leave=0 if save or due else 1)
            run.look(due)
            if save or run.over:
                run.save()
        if interrupt.requested:
            run.leave()
        return run.result()


class _Run:
    """The host's side of a run: sends chunks off, looks at what comes back."""

    def __init__(
        self,
        chunks: Chunks,
        step: int,
        recorder: Recorder,
        batches: Batches,
        store: Checkpoints | None,
        line: Progress,
        stop: Callable[[History], bool] | None,
    ):
        self.chunks, self.step, self.recorder = chunks, step, recorder
        self.batches, self.store, self.line = batches, store, line
        self.stop, self.over = stop, False
        self.saved, self.saved_step = time.monotonic(), step
        self.pending: collections.deque = collections.deque()

    def go(self, length: int) -> None:
        """Start the next chunk; does not wait for it."""
        aux, finite = self.chunks.run(self.batches.inputs(self.step, length), length)
        self.step += length
        self.pending.append((self.step, aux, finite))

    def settle(self, leave: int) -> None:
        """Wait for chunks until only `leave` are under way, and look at their losses.

        One is left under way where nothing needs the state, so that the device never waits for the host.
        """
        while len(self.pending) > leave:
            step, aux, finite = self.pending.popleft()
            aux = {name: np.asarray(values) for name, values in aux.items()}
            self.recorder.extend(aux)
            self.line.update(step, aux["loss"])
            bad = np.flatnonzero(~np.isfinite(aux["loss"]))
            if len(bad) or not finite:
                self._refuse(step, len(aux["loss"]), int(bad[0]) if len(bad) else None)

    def look(self, probes: Sequence[Probe]) -> None:
        if not probes:
            return
        seen = self._snapshot()
        for probe in probes:
            self.recorder.probe(probe.name, self.step, probe.look(seen, self.chunks.fixed.key))
        self.line.show(self.recorder.records())
        self.ask()

    def ask(self) -> None:
        """Whether the run should end, by what its probes saw."""
        history = self.recorder.history()
        self.over = self.stop is not None and bool(history.probes) and bool(self.stop(history))

    def worth_saving(self, before: int, every: int | None) -> bool:
        """True if a checkpoint is due in (before, step]. When it is written changes no bit of the run."""
        if every is None:
            return time.monotonic() - self.saved > SECONDS
        return self.step // every > before // every

    def save(self) -> None:
        if self.store is not None:
            self.store.save(self.step, self.chunks.state, self.recorder)
        self.saved, self.saved_step = time.monotonic(), self.step

    def leave(self) -> None:
        """After Ctrl-C, which may have come at any moment of the loop."""
        self.settle(leave=0)
        if self.store is None:
            raise KeyboardInterrupt(f"left at step {self.step}")
        if self.step != self.saved_step:
            self.save()
        self.store.finish(self.recorder)
        raise KeyboardInterrupt(f"left at step {self.step}; resume=True goes on from {self.store.last}")

    def result(self) -> Fit:
        if self.store is not None:
            self.store.finish(self.recorder)
        seen = self._snapshot()
        return Fit(seen.model, seen.ema, self.recorder.history(), self.step, seen.state)

    def _snapshot(self) -> Snapshot:
        return Snapshot.of(self.chunks.state, self.chunks.fixed.static)

    def _refuse(self, step: int, length: int, bad: int | None) -> None:
        if self.store is None:
            kept = "no folder was given, so there is no checkpoint"
        else:
            kept = f"the last good checkpoint is {self.store.last}"
            with contextlib.suppress(OSError):
                self.store.finish(self.recorder)
        if bad is None:
            raise NotFinite(f"parameters are not finite after step {step - 1} although every loss was; {kept}")
        at = step - length + bad
        rows = self.batches.rows(at)
        seen = "" if rows is None else f" on data rows {_some(rows[0])}"
        raise NotFinite(f"loss is not finite at step {at}{seen}; {kept}")


def _some(rows: np.ndarray, first: int = 8) -> str:
    more = f", ... ({len(rows)} in all, see learn.batch_rows)" if len(rows) > first else ""
    return ", ".join(map(str, rows[:first])) + more


def _check(steps, batch_size, data, key, ema, chunk, resume, folder, checkpoint_every, probes, stop) -> None:
    counts = {"steps": steps, "chunk": chunk}
    counts |= {"checkpoint_every": checkpoint_every} if checkpoint_every is not None else {}
    counts |= {"batch_size": batch_size} if batch_size is not None else {}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {count!r}")
    if (data is None) != (batch_size is None):
        raise InputError(f"data and batch_size go together, got {'no data' if data is None else 'no batch_size'}")
    if ema is not None and not 0 <= ema < 1:
        raise InputError(f"ema must be None or in [0, 1), got {ema}")
    if key.ndim != (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
        raise InputError(f"key must be one random key, got shape {key.shape}")
    if resume and folder is None:
        raise InputError("resume=True needs the folder of the run")
    names = [probe.name for probe in probes]
    if len(set(names)) < len(names):
        raise InputError(f"probes need different names, got {names}")
    if stop is not None and not probes:
        raise InputError("stop is asked when a probe has looked: give probes, or no stop")
