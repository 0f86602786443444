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
from kinema.motion.weights import load_arrays, load_weights, read_meta, read_specs, save_weights, sync_folder

STATE, HISTORY, FROZEN, CHECKPOINTS = "state.safetensors", "history.safetensors", "frozen.safetensors", "checkpoints"
KEPT = 2


def load_model(folder: str | os.PathLike, like: PyTree, *, ema: bool = True, step: int | None = None) -> PyTree:
    """The model of a run: `like`, a model of the same structure, with the arrays of a checkpoint.

    `ema` takes the average of the weights where the run kept one. The newest whole checkpoint unless `step` names one.

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
    """The checkpoints of one run in a folder; `last` is the newest that is whole.

    Raises:
        InputError: the folder cannot be written, or holds a run although `resume` is false.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any], *, resume: bool):
        self.folder, self.identity = Path(folder), identity
        self.root = self.folder / CHECKPOINTS
        self.last: Path | None = None
        held = [name for name in (CHECKPOINTS, FROZEN, "history.json") if (self.folder / name).exists()]
        if held and not resume:
            raise InputError(f"{folder} already holds a run ({held[0]}); give another folder, or resume=True")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for leftover in self.root.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            probe = self.root / f".tmp-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise InputError(f"folder {folder} cannot be written: {error.strerror}") from error

    def restore(self, like: LearnState, static: PyTree, recorder: Recorder) -> LearnState | None:
        """The newest whole state, its history put into `recorder`; None if there is no checkpoint yet.

        Raises:
            InputError: the folder holds another run; what differs is named.
            StoreCorrupt: every checkpoint is damaged.
        """
        found = _list(self.root)
        if not found:
            return None
        self._check(found, like, static)

        def load(path: Path) -> tuple[LearnState, dict[str, Any]]:
            return load_weights(path / STATE, like), load_arrays(path / HISTORY)

        state, history = _first_whole(found, load)
        recorder.restore(history)
        self.last = self.root / _name(int(state.step))
        return state

    def begin(self, static: PyTree) -> None:
        """Keep what does not learn.

        Raises:
            OSError: it cannot be written.
        """
        self._write("the frozen part of the model", lambda: save_weights(self.folder / FROZEN, static))

    def save(self, step: int, state: LearnState, recorder: Recorder) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            OSError: it cannot be written; the last good one is intact, and named.
        """
        final, temporary = self.root / _name(step), self.root / f".tmp-{os.getpid()}-{_name(step)}"
        discarded = self.root / f".tmp-{os.getpid()}-old"

        def write() -> None:
            try:
                temporary.mkdir()
                save_weights(temporary / STATE, jax.device_get(state), {"step": step, "run": self.identity})
                save_weights(temporary / HISTORY, recorder.arrays())
                sync_folder(temporary)
                if final.exists():  # a damaged one that was passed over
                    os.rename(final, discarded)
                os.rename(temporary, final)
                sync_folder(self.root)
            finally:
                for path in (temporary, discarded):
                    shutil.rmtree(path, ignore_errors=True)

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
        self._write("the history", lambda: recorder.history().save(self.folder / "history.json"))

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
        phrases += unlike(read_meta(path)["run"], self.identity)
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
