"""Checkpoints of a run, any of which is whole: a folder is written under a temporary name and renamed.

folder/frozen.safetensors                            what does not learn, once
folder/checkpoints/step-00000150/state.safetensors   params, ema, opt_state, step; the run's identity as metadata
folder/checkpoints/step-00000150/history.safetensors
folder/history.json                                  when the run ends or is left
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from kinema.errors import InputError, StoreCorrupt
from kinema.learn.history import Recorder
from kinema.learn.identity import unlike
from kinema.learn.step import LearnState
from kinema.motion import trees, weights
from kinema.motion.disk import publish, writing
from kinema.motion.weights import load_arrays, load_weights, read_meta, read_specs, save_weights, sync_folder

STATE, HISTORY, FROZEN = "state.safetensors", "history.safetensors", "frozen.safetensors"
CHECKPOINTS, HISTORY_JSON = "checkpoints", "history.json"
KEPT = 2


def load_model(folder: str | os.PathLike, like: PyTree, *, ema: bool = True, step: int | None = None) -> PyTree:
    """The model of a run: `like`, a model of the same structure, with the arrays of a checkpoint.

    `ema` takes the average of the weights where the run kept one. The newest whole checkpoint unless `step` names one.

    >>> import jax.random as jr, optax, tempfile
    >>> from kinema.learn import fit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loss = lambda w, batch, key: ((w - 3) ** 2, {})
    ...     run = fit(jnp.zeros(()), loss, optimizer=optax.sgd(0.5), steps=1, key=jr.key(0), folder=folder)
    ...     load_model(folder, jnp.zeros(()), ema=False).item()
    3.0

    Raises:
        InputError: no checkpoint there; a run of another model (the first leaves that differ are named).
        StoreCorrupt: every checkpoint is damaged, or the one that was asked for.
    """
    checkpoints = _list(Path(folder) / CHECKPOINTS)
    if step is not None:
        checkpoints = [path for path in checkpoints if path.name == _name(step)]
    if not checkpoints:
        raise InputError(f"no checkpoint{'' if step is None else f' of step {step}'} in {folder}")
    return _first_whole(checkpoints, lambda path: _load_model(path, Path(folder) / FROZEN, like, ema))


class Checkpoints:
    """The checkpoints of one run in a folder; `last` is the newest that is whole. Made by `open`."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity, self.root = folder, identity, folder / CHECKPOINTS
        self.last: Path | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: str | os.PathLike, identity: dict[str, Any], *, resume: bool) -> Iterator["Checkpoints"]:
        """The folder of a run, made if need be, and closed to other processes until the end.

        Raises:
            InputError: the folder cannot be written, is in use, or holds a run although `resume` is false.
        """
        store = cls(Path(folder), identity)
        held = [name for name in (CHECKPOINTS, FROZEN, HISTORY_JSON) if (store.folder / name).exists()]
        if held and not resume:
            raise InputError(f"{folder} already holds a run ({held[0]}); give another folder, or resume=True")
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            probe = store.root / f".{os.getpid()}"
            probe.mkdir(exist_ok=True)
            probe.rmdir()
        except OSError as error:
            raise InputError(f"folder {folder} cannot be written: {error.strerror}") from error
        with writing(store.root):
            for leftover in store.root.glob(".*"):  # of a kill
                shutil.rmtree(leftover, ignore_errors=True)
            yield store

    def restore_or_begin(self, state: LearnState, static: PyTree, recorder: Recorder) -> LearnState:
        """The newest whole state, its history put into `recorder`; where there is none, `state` is the first one.

        Raises:
            InputError: the folder holds another run; what differs is named.
            StoreCorrupt: every checkpoint is damaged.
            OSError: the first checkpoint cannot be written.
        """
        found = _list(self.root)
        if not found:
            self._write("the frozen part of the model", lambda: save_weights(self.folder / FROZEN, static))
            self.save(0, state, recorder)
            return state
        self._check(found, state, static)

        def load(path: Path) -> tuple[LearnState, dict[str, Any]]:
            return load_weights(path / STATE, state), load_arrays(path / HISTORY)

        restored, history = _first_whole(found, load)
        recorder.restore(history)
        self.last = self.root / _name(int(restored.step))
        # copied: a buffer that NumPy owns too cannot be donated
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, restored)

    def save(self, step: int, state: LearnState, recorder: Recorder) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            OSError: it cannot be written; the last good one is intact, and named.
        """
        final, temporary, discarded = (self.root / name for name in (_name(step), ".new", ".discarded"))

        def write() -> None:
            try:
                temporary.mkdir()
                save_weights(temporary / STATE, state, {"step": step, "run": self.identity})
                save_weights(temporary / HISTORY, recorder.arrays())
                sync_folder(temporary)
                publish(temporary, final)  # there may be a damaged one that was passed over
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

        self._write(f"the checkpoint of step {step}", write)
        self.last = final
        for path in _list(self.root)[KEPT:]:
            # renamed first: a kill must not leave half a checkpoint under its name
            with contextlib.suppress(OSError):
                os.rename(path, discarded)
            shutil.rmtree(discarded, ignore_errors=True)

    def finish(self, recorder: Recorder) -> None:
        """Write the history for readers.

        Raises:
            OSError: it cannot be written.
        """
        self._write("the history", lambda: recorder.history().save(self.folder / HISTORY_JSON))

    def _write(self, what: str, write) -> None:
        try:
            write()
        except OSError as error:
            kept = f"the last good checkpoint is {self.last}" if self.last else "there is no checkpoint yet"
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{what} could not be written to {self.folder} ({reason}); {kept}") from error

    def _check(self, found: list[Path], like: LearnState, static: PyTree) -> None:
        path = _first_whole(found, lambda path: (read_meta(path / STATE), path))[1] / STATE
        specs, wanted = read_specs(path), weights.leaf_specs(like)
        phrases = []
        for what, prefix in (("model leaf", "params"), ("optimizer state", "opt_state")):
            part = weights.differences(trees.below(specs, prefix), trees.below(wanted, prefix))
            phrases += [f"{what} {phrase}" for phrase in part]
            if part:
                break  # the optimizer's state follows the model's leaves
        else:
            phrases += [f"frozen model leaf {phrase}" for phrase in _frozen_differences(self.folder / FROZEN, static)]
        phrases += unlike(read_meta(path).get("run", {}), self.identity)
        if phrases:
            raise InputError(f"{self.folder} holds another run, it cannot be resumed: {weights.shorten(phrases, 5)}")


def _frozen_differences(path: Path, static: PyTree) -> list[str]:
    """Leaves that do not learn must have the same values, or the resumed run would be another one."""
    specs = read_specs(path)
    phrases = weights.differences(specs, weights.leaf_specs(static))
    if phrases:
        return phrases
    load_weights(path, static)
    digests = weights.digests(static)
    return [f"{name} has other values" for name, spec in specs.items() if spec["sha256"] != digests[name]]


def _load_model(path: Path, frozen: Path, like: PyTree, ema: bool) -> PyTree:
    specs = read_specs(path / STATE)
    learned, prefix = trees.below(specs, "params"), "ema" if ema and trees.below(specs, "ema") else "params"
    flags = [name in learned for name, _ in trees.named_leaves(like)]
    params, static = eqx.partition(like, jax.tree.unflatten(jax.tree.structure(like), flags))
    kind = {"ema": jnp.float32, "params": jnp.bool_}[prefix]  # promotes to the dtype in the file
    stored = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, kind)), params)
    loaded = load_weights(path / STATE, stored, prefix=prefix)
    params = jax.tree.map(lambda x, like: x.astype(like.dtype), loaded, params)
    return eqx.combine(params, load_weights(frozen, static))


def _first_whole(paths: list[Path], load):
    """`load` of the first path that is not damaged."""
    for path in paths:
        try:
            for name in (STATE, HISTORY):
                if not (path / name).is_file():
                    raise StoreCorrupt(f"{path} lacks {name}")
            return load(path)
        except StoreCorrupt as error:
            if path == paths[-1]:
                raise
            warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=4)
    raise InputError("no checkpoints")


def _list(root: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"
