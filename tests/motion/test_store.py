"""The store: what is written comes back bit for bit, damage is found and named, and no change is ever half made."""

import json
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import zarr

from kinema.errors import InputError, StoreCorrupt
from kinema.motion import Trajectory, disk, folder, store

FRAMES = 5


def make(n=6, seed=0, frames=FRAMES, **changes):
    r = np.random.default_rng(seed)
    parts = {
        "ts": np.linspace(0, 1, frames, dtype=np.float32),
        "states": {
            "x": r.normal(size=(n, frames, 2, 2)).astype(np.float32),
            "rest": [r.integers(0, 9, (n, frames)), (r.normal(size=(n, frames)) > 0, None)],
        },
        "constants": {"mass": r.normal(size=(n, 2)).astype(np.float32), "hits": r.integers(0, 9, n)},
        "meta": {"world": "balls", "units": {"x": "m"}, "seed": seed},
    }
    return Trajectory(**{**parts, **changes})


def same(a, b):
    assert jax.tree.structure((a.states, a.constants)) == jax.tree.structure((b.states, b.constants))
    for x, y in zip(jax.tree.leaves((a.ts, a.states, a.constants)), jax.tree.leaves((b.ts, b.states, b.constants))):
        assert x.dtype == y.dtype and np.array_equal(x, y)
    assert a.meta == b.meta and a.ensemble == b.ensemble
    return True


def rows(traj, *more):
    """The trajectories of several, one after another."""
    parts = [traj, *more]
    states, constants = jax.tree.map(lambda *x: jnp.concatenate(x), *[(p.states, p.constants) for p in parts])
    return Trajectory(traj.ts, states, constants, traj.meta)


@pytest.fixture
def small_chunks(monkeypatch):
    """Four trajectories of x in a chunk: appending then rewrites a chunk that is not full."""
    monkeypatch.setattr(folder, "_CHUNK_BYTES", 4 * FRAMES * 4 * 4)


# -- what is written comes back


def test_round_trip(tmp_path):
    traj = make()
    traj.save(tmp_path / "deep" / "a.zarr")
    assert same(Trajectory.load(tmp_path / "deep" / "a.zarr"), traj)
    assert os.listdir(tmp_path / "deep") == ["a.zarr"]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "float16", "float32", "complex64"])
def test_dtypes(tmp_path, dtype):
    x = np.arange(12).reshape(2, 3, 2).astype(dtype)
    Trajectory(np.arange(3.0), x).save(tmp_path / "a.zarr")
    back = Trajectory.load(tmp_path / "a.zarr").states
    assert back.dtype == dtype and np.array_equal(back, x)


def test_double_precision_and_special_values(tmp_path, x64):
    x = np.array([[np.pi, -0.0, np.inf, np.nan, 5e-324]])
    Trajectory(np.arange(5) * 1e-12 + 1, x).save(tmp_path / "a.zarr")
    back = Trajectory.load(tmp_path / "a.zarr")
    assert back.states.dtype == np.float64 and np.asarray(back.states).tobytes() == x.tobytes()
    assert np.array_equal(back.ts, np.arange(5) * 1e-12 + 1)


def test_single_trajectory(tmp_path):
    traj = Trajectory(jnp.arange(3.0), {"x": jnp.ones((3, 2))}, {"steps": jnp.array(7)}, {"a": 1}, single=True)
    traj.save(tmp_path / "a.zarr")
    back = Trajectory.load(tmp_path / "a.zarr", frames=slice(1, None))
    assert back.ensemble is None and len(back) == 2 and int(back.constants["steps"]) == 7
    with pytest.raises(InputError, match="single trajectory"):
        Trajectory.load(tmp_path / "a.zarr", ensemble=slice(0, 1))
    with pytest.raises(InputError, match="single trajectory"):
        store.append(tmp_path / "a.zarr", make())


def test_times_of_a_vmapped_ensemble(tmp_path):
    traj = jax.vmap(lambda x: Trajectory(jnp.arange(3.0), x * jnp.ones(3), single=True))(jnp.arange(2.0))
    traj.save(tmp_path / "a.zarr")
    assert Trajectory.load(tmp_path / "a.zarr").ts.shape == (3,)
    own = jax.vmap(lambda x: Trajectory(x * jnp.arange(3.0), jnp.ones(3), single=True))(jnp.arange(1.0, 3.0))
    own.save(tmp_path / "b.zarr")
    store.append(tmp_path / "b.zarr", own)
    back = Trajectory.load(tmp_path / "b.zarr", ensemble=slice(1, 3))
    assert back.ts.tolist() == [[0, 2, 4], [0, 1, 2]] and back.ensemble == 2


def test_any_zarr_library_reads_it(tmp_path):
    traj = make()
    traj.save(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=3)
    assert np.array_equal(group["states/x"][:], traj.states["x"])
    assert group["states/x"].metadata.dimension_names == ("trajectory", "frame", None, None)
    assert sorted(name for name, _ in group.members()) == ["constants", "states", "ts"]


# -- slices


def test_slices(tmp_path, small_chunks):
    traj = make(11)
    traj.save(tmp_path / "a.zarr")
    back = Trajectory.load(tmp_path / "a.zarr", ensemble=slice(3, 9, 2), frames=slice(-2, None))
    assert np.array_equal(back.states["x"], traj.states["x"][3:9:2, -2:])
    assert np.array_equal(back.constants["hits"], traj.constants["hits"][3:9:2])
    assert np.array_equal(back.ts, traj.ts[-2:])
    for wrong in ({"ensemble": slice(11, 20)}, {"frames": slice(2, 2)}, {"ensemble": slice(None, None, -1)}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Trajectory.load(tmp_path / "a.zarr", **wrong)
    with pytest.raises(InputError, match="frames must be a slice, got 3"):
        store._slice("frames", 3, 5)


def test_a_slice_reads_only_its_chunks(tmp_path, small_chunks, monkeypatch):
    make(40).save(tmp_path / "a.zarr")
    keys, read = [], folder.Folder.read
    monkeypatch.setattr(folder.Folder, "read", lambda self, key: keys.append(key) or read(self, key))
    Trajectory.load(tmp_path / "a.zarr", ensemble=slice(21, 23))
    assert {k for k in keys if k.startswith("states/x/c")} == {"states/x/c/5/0/0/0"}


def test_long_trajectories_are_cut_in_time():
    assert folder._chunk_shape((10, 5, 2), 4, True) == (folder._CHUNK_BYTES // 40, 5, 2)  # room for more
    assert folder._chunk_shape((10, 5, 2), 4, False) == (10, 5, 2)
    rows, frames, width = folder._chunk_shape((10, 100_000, 100), 4, True)
    assert rows == 1 and frames * width * 4 <= folder._CHUNK_BYTES < 2 * frames * width * 4 and width == 100
    assert folder._chunk_shape((), 4, False) == () and folder._chunk_shape((3,), 4, False) == (3,)


# -- appending


def test_append(tmp_path, small_chunks):
    parts = [make(n, seed) for seed, n in enumerate([6, 1, 9, 4])]
    parts[0].save(tmp_path / "a.zarr")
    for part in parts[1:]:
        store.append(tmp_path / "a.zarr", part)
    assert same(Trajectory.load(tmp_path / "a.zarr"), rows(*parts))
    assert store.verify(tmp_path / "a.zarr") > 20
    assert sorted(os.listdir(tmp_path / "a.zarr")) == ["constants", "states", "ts", "zarr.json"]


def test_append_touches_only_the_last_chunk(tmp_path, small_chunks):
    make(10).save(tmp_path / "a.zarr")
    chunks = tmp_path / "a.zarr" / "states" / "x" / "c"
    before = {p: p.stat().st_ino for p in chunks.rglob("*") if p.is_file()}
    store.append(tmp_path / "a.zarr", make(3, 1))
    assert [p for p, node in before.items() if p.stat().st_ino != node] == [chunks / "2" / "0" / "0" / "0"]


def test_append_refuses_what_does_not_fit(tmp_path):
    make().save(tmp_path / "a.zarr")
    before = snapshot(tmp_path / "a.zarr")
    x, hits = np.zeros((1, FRAMES, 2, 2), np.float32), np.zeros(1, np.int32)
    for wrong, match in [
        (make(1, frames=4), "frames|shape|is float32"),
        (make(1, ts=np.arange(FRAMES, dtype=np.float32)), "ts differ"),
        (make(1, states={"x": x}), "structure differ"),
        (make(1, states={**make(1).states, "x": x.astype(np.float16)}), r"states/x is float32 .* float16"),
        (make(1, constants={"hits": hits}), "constants differ"),
        (Trajectory(np.arange(3.0), np.ones((3, 2)), single=True), "no ensemble axis"),
    ]:
        with pytest.raises(InputError, match=match):
            store.append(tmp_path / "a.zarr", wrong)
    assert snapshot(tmp_path / "a.zarr") == before
    with pytest.raises(InputError, match="not there"):
        store.append(tmp_path / "b.zarr", make())


def test_two_writers(tmp_path):
    make().save(tmp_path / "a.zarr")
    with disk.writing(tmp_path / "a.zarr"):
        with pytest.raises(InputError, match="another process"):
            store.append(tmp_path / "a.zarr", make())
        with pytest.raises(InputError, match="another process"):
            make().save(tmp_path / "a.zarr", overwrite=True)
        assert same(Trajectory.load(tmp_path / "a.zarr"), make())
    assert sorted(os.listdir(tmp_path)) == ["a.zarr"]


# -- a process that dies at any moment


def small(n, seed):
    traj = make(n, seed)
    return Trajectory(traj.ts, traj.states["x"], {}, {})


def snapshot(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def every_moment(tmp_path, monkeypatch):
    """Copies `tmp_path/live` after each operation on files that a change makes: what a killed process leaves."""
    copies, copying, lock = [], [], threading.RLock()

    def watch(module, name):
        real = getattr(module, name)

        def operation(*args, **kwargs):
            with lock:
                result = real(*args, **kwargs)
                if not copying:
                    copying.append(True)
                    copies.append(tmp_path / f"moment-{len(copies)}")
                    shutil.copytree(tmp_path / "live", copies[-1])
                    copying.clear()
                return result

        monkeypatch.setattr(module, name, operation)

    def start():
        for name in ("replace", "rename", "link"):
            watch(os, name)
        watch(shutil, "rmtree")
        return copies

    return start


def test_killed_while_appending(tmp_path, small_chunks, every_moment):
    old, new, newest = (small(n, seed) for n, seed in ((6, 0), (9, 1), (1, 2)))
    path = tmp_path / "live" / "a.zarr"
    old.save(path)
    copies = every_moment()
    store.append(path, new)
    seen = set()
    for copy in list(copies):
        store.verify(copy / "a.zarr")
        back = Trajectory.load(copy / "a.zarr")
        seen.add(back.ensemble)
        assert same(back, old if back.ensemble == 6 else rows(old, new))
    assert seen == {6, 15} and len(copies) >= 7
    for copy in copies[::3]:  # whoever appends next starts from a whole store
        back = Trajectory.load(copy / "a.zarr")
        store.append(copy / "a.zarr", newest)
        assert same(Trajectory.load(copy / "a.zarr"), rows(back, newest))
        files = {str(name) for name in snapshot(copy / "a.zarr")}
        assert files == {*folder.open_folder(copy / "a.zarr").files, "zarr.json"}  # nothing left of the dead one


def test_killed_while_overwriting(tmp_path, every_moment):
    old, new = small(2, 0), small(3, 1)
    path = tmp_path / "live" / "a.zarr"
    old.save(path)
    copies = every_moment()
    new.save(path, overwrite=True)
    assert {Trajectory.load(copy / "a.zarr").ensemble for copy in copies} == {2, 3}
    gone = [copy for copy in copies if not (copy / "a.zarr").exists()]
    assert gone  # between two renames
    for copy in gone:
        store.verify(copy / "a.zarr")
        with pytest.raises(InputError, match="exists"):
            new.save(copy / "a.zarr")
        assert same(Trajectory.load(copy / "a.zarr"), old)


def test_killed_while_saving(tmp_path, every_moment):
    (tmp_path / "live").mkdir()
    copies = every_moment()
    small(4, 0).save(tmp_path / "live" / "a.zarr")
    for copy in copies:
        if (copy / "a.zarr").exists():
            assert same(Trajectory.load(copy / "a.zarr"), small(4, 0))
    assert any((copy / "a.zarr").exists() for copy in copies)


def test_a_reader_meets_an_append(tmp_path, small_chunks, monkeypatch):
    """The store changes between the reader's look at the manifest and its look at the chunks."""
    make(6).save(tmp_path / "a.zarr")
    decode, appended = store._decode, []

    def late(folder_, *args):
        if not appended:
            appended.append(store.append(tmp_path / "a.zarr", make(3, 1)))
        return decode(folder_, *args)

    monkeypatch.setattr(store, "_decode", late)
    assert same(Trajectory.load(tmp_path / "a.zarr"), rows(make(6), make(3, 1)))


# -- a disk that is full, a folder that cannot be written


@pytest.mark.parametrize("fail_at", [0, 3, 8])
@pytest.mark.parametrize("change", ["append", "overwrite"])
def test_disk_full(tmp_path, small_chunks, monkeypatch, change, fail_at):
    make(6).save(tmp_path / "a.zarr")
    before, write, calls = snapshot(tmp_path), disk.write_file, []

    def full(path, data):
        calls.append(path)
        if len(calls) > fail_at:
            path.with_name("part").write_bytes(data[:3])
            path.with_name("part").unlink()
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(folder, "write_file", full)
    with pytest.raises(OSError, match=r"No space left on device.*what was there before is intact") as caught:
        if change == "append":
            store.append(tmp_path / "a.zarr", make(4, 1))
        else:
            make(4, 1).save(tmp_path / "a.zarr", overwrite=True)
    assert caught.value.errno == 28
    monkeypatch.undo()
    assert same(Trajectory.load(tmp_path / "a.zarr"), make(6))
    if change == "overwrite":
        assert snapshot(tmp_path) == before
    store.verify(tmp_path / "a.zarr")
    store.append(tmp_path / "a.zarr", make(1, 2))
    assert Trajectory.load(tmp_path / "a.zarr").ensemble == 7


def test_disk_full_is_undone(tmp_path, small_chunks, monkeypatch):
    """If old bytes can still be put back, nothing of the failed change stays."""
    make(6).save(tmp_path / "a.zarr")
    before, write = set(snapshot(tmp_path / "a.zarr")), disk.write_file

    def once(path, data):
        if "constants" in path.parts:  # written last, after new chunks of the states
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(folder, "write_file", once)
    with pytest.raises(OSError, match="No space"):
        store.append(tmp_path / "a.zarr", make(4, 1))
    assert not (tmp_path / "a.zarr" / ".old").exists()
    assert set(snapshot(tmp_path / "a.zarr")) == before
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=3)
    assert group["states/x"].shape[0] == 6


@pytest.mark.parametrize("change", ["append", "save"])
def test_writes_under_way_when_another_fails(tmp_path, small_chunks, monkeypatch, change):
    """Zarr writes chunks side by side; one that is late must not land in a store that has been put back."""
    make(6).save(tmp_path / "a.zarr")
    before, write = snapshot(tmp_path), disk.write_file

    def uneven(path, data):
        if path.parts[-4:] == ("2", "0", "0", "0"):
            raise OSError(28, "No space left on device")
        if path.parts[-4:] == ("1", "0", "0", "0"):  # of `append`, it holds old rows too
            time.sleep(0.3)
        write(path, data)

    monkeypatch.setattr(folder, "write_file", uneven)
    with pytest.raises(OSError, match="No space"):
        store.append(tmp_path / "a.zarr", make(9, 1)) if change == "append" else make(9, 1).save(tmp_path / "b.zarr")
    time.sleep(0.7)
    assert snapshot(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_the_old_store_comes_back(tmp_path, monkeypatch):
    """The old store has stepped aside and the new one cannot take its place."""
    make().save(tmp_path / "a.zarr")
    before, rename = snapshot(tmp_path), os.rename

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError, match="was not saved"):
        make(3).save(tmp_path / "a.zarr", overwrite=True)
    assert snapshot(tmp_path) == before


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="was not saved"):
        make().save(tmp_path / "file" / "a.zarr")


# -- damage


def damage(path, how):
    data = path.read_bytes()
    match how:
        case "cut short":
            path.write_bytes(data[:-1])
        case "changed":
            path.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "link out":
            path.unlink()
            path.with_name("elsewhere").write_bytes(data)
            shutil.move(path.with_name("elsewhere"), path.parents[len(path.parents) - 3] / "elsewhere")
            path.symlink_to(path.parents[len(path.parents) - 3] / "elsewhere")


@pytest.mark.parametrize("how", ["cut short", "changed", "missing", "empty"])
def test_damage_is_named_and_nothing_is_read(tmp_path, small_chunks, how):
    make(20).save(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr" / "states" / "x" / "c" / "3" / "0" / "0" / "0", how)
    with pytest.raises(StoreCorrupt, match="states/x/c/3/0/0/0"):
        Trajectory.load(tmp_path / "a.zarr")
    with pytest.raises(StoreCorrupt, match="states/x/c/3/0/0/0"):
        store.verify(tmp_path / "a.zarr")
    assert Trajectory.load(tmp_path / "a.zarr", ensemble=slice(0, 12)).ensemble == 12  # those chunks are whole
    with pytest.raises(OSError):  # a StoreCorrupt is an OSError
        Trajectory.load(tmp_path / "a.zarr", ensemble=slice(12, 13))


@pytest.mark.parametrize("name", ["ts/c/0", "ts/zarr.json", "states/x/zarr.json", "constants/hits/c/0"])
def test_damage_anywhere(tmp_path, name):
    make().save(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr" / name, "changed")
    with pytest.raises(StoreCorrupt, match=name):
        Trajectory.load(tmp_path / "a.zarr")


def test_damage_stops_an_append(tmp_path, small_chunks):
    make(6).save(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr" / "states" / "x" / "c" / "1" / "0" / "0" / "0", "changed")
    before = snapshot(tmp_path)
    with pytest.raises(StoreCorrupt, match="states/x/c/1"):
        store.append(tmp_path / "a.zarr", make(1, 1))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("how", ["cut short", "changed", "empty"])
def test_damaged_manifest(tmp_path, how):
    make().save(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr" / "zarr.json", how)
    with pytest.raises(StoreCorrupt, match="manifest"):
        Trajectory.load(tmp_path / "a.zarr")


def test_changed_meta_is_noticed(tmp_path):
    make().save(tmp_path / "a.zarr")
    root = tmp_path / "a.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"balls"', '"cubes"'))
    with pytest.raises(StoreCorrupt, match="has changed"):
        Trajectory.load(tmp_path / "a.zarr")


# -- hostile stores and names


def forge(path, change):
    """Change the manifest and make its checksum fit."""
    root = path / "zarr.json"
    spec = json.loads(root.read_text())
    ours = spec["attributes"]["kinema"]
    change(ours)
    ours["sha256"] = folder._digest({key: ours[key] for key in ("format", "header", "files")})
    root.write_text(json.dumps(spec))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "states/../../secret", ".hidden", "a\\b", "", "c:x"])
def test_manifest_cannot_lead_out(tmp_path, name):
    make().save(tmp_path / "a.zarr")
    forge(tmp_path / "a.zarr", lambda ours: ours["files"].update({name: ["0" * 64, 1]}))
    with pytest.raises(InputError, match="leading dot"):
        Trajectory.load(tmp_path / "a.zarr")


def test_links_cannot_lead_out(tmp_path):
    make().save(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "ts" / "c" / "0"
    shutil.move(chunk, tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreCorrupt, match="ts/c/0 is a link out"):
        Trajectory.load(tmp_path / "a.zarr")


def test_nothing_is_written_through_a_link(tmp_path, small_chunks):
    make(4).save(tmp_path / "a.zarr")
    (tmp_path / "home").mkdir()
    (tmp_path / "a.zarr" / "states" / "x" / "c" / "1").symlink_to(tmp_path / "home")
    with pytest.raises(StoreCorrupt, match="link out"):
        store.append(tmp_path / "a.zarr", make(1, 1))
    assert not os.listdir(tmp_path / "home")


def test_forged_headers(tmp_path):
    for i, (change, error) in enumerate(
        [
            (lambda ours: ours["header"].update(constants=["../../x"]), InputError),
            (lambda ours: ours["header"].update(structure={"dict": {"..": "array"}}), InputError),
            (lambda ours: ours["header"].update(structure={"evil": 1}), StoreCorrupt),
            (lambda ours: ours["header"].update(kind="weights"), InputError),
            (lambda ours: ours["header"].update(ensemble="many"), InputError),
            (lambda ours: ours.update(format=99), InputError),
            (lambda ours: ours["files"].pop("states/x/c/0/0/0/0"), StoreCorrupt),
            (lambda ours: ours.update(files=[1, 2]), StoreCorrupt),
        ]
    ):
        path = tmp_path / f"{i}.zarr"
        make().save(path)
        forge(path, change)
        with pytest.raises(error):
            Trajectory.load(path)


def test_a_checksum_is_not_a_path(tmp_path):
    make().save(tmp_path / "a.zarr")
    forge(tmp_path / "a.zarr", lambda ours: ours["files"]["ts/c/0"].__setitem__(0, "../../home"))
    with pytest.raises(StoreCorrupt, match="manifest"):
        Trajectory.load(tmp_path / "a.zarr")


def test_foreign_codecs_are_refused(tmp_path):
    make().save(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "ts" / "zarr.json"
    file.write_text(file.read_text().replace('"zstd"', '"pickle"'))
    import hashlib

    digest = [hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size]
    forge(tmp_path / "a.zarr", lambda ours: ours["files"].update({"ts/zarr.json": digest}))
    with pytest.raises(StoreCorrupt, match="pickle"):
        Trajectory.load(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".x", "", "a" * 101, "a:b", "a\nb", 3])
def test_names_cannot_lead_out(tmp_path, name):
    with pytest.raises(InputError, match="leading dot"):
        Trajectory(np.arange(2.0), {name: np.ones((1, 2))}).save(tmp_path / "a.zarr")
    if isinstance(name, str):
        with pytest.raises(InputError, match="leading dot"):
            Trajectory(np.arange(2.0), np.ones((1, 2)), {name: np.ones(1)}).save(tmp_path / "a.zarr")
    assert not os.listdir(tmp_path)


def test_states_that_cannot_be_kept(tmp_path):
    ts, x = np.arange(2.0), np.ones((1, 2))
    for states, match in [
        ({"x": x, "X": x}, "upper and lower"),
        ({"x": jnp.ones((1, 2), jnp.bfloat16)}, "bfloat16"),
        ({"x": jr.split(jr.key(0), (1, 2))}, "cannot be stored"),
    ]:
        with pytest.raises(InputError, match=match):
            Trajectory(ts, states).save(tmp_path / "a.zarr")
    assert not os.listdir(tmp_path)


# -- nothing is overwritten unasked


def test_overwrite_must_be_asked_for(tmp_path):
    make(2).save(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="overwrite=True"):
        make(3).save(tmp_path / "a.zarr")
    make(3).save(tmp_path / "a.zarr", overwrite=True)
    assert same(Trajectory.load(tmp_path / "a.zarr"), make(3)) and os.listdir(tmp_path) == ["a.zarr"]


def test_only_stores_are_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "note").write_text("text")
    make().save(tmp_path / "real.zarr")
    (tmp_path / "link").symlink_to(tmp_path / "real.zarr")
    for name in ("thesis", "note", "link"):
        with pytest.raises(InputError, match="will not be replaced"):
            make(1).save(tmp_path / name, overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"
    assert same(Trajectory.load(tmp_path / "link"), make())


def test_a_damaged_store_can_be_overwritten(tmp_path):
    make().save(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr" / "ts" / "c" / "0", "missing")
    make(3).save(tmp_path / "a.zarr", overwrite=True)
    assert same(Trajectory.load(tmp_path / "a.zarr"), make(3))


def test_what_is_not_a_store(tmp_path):
    (tmp_path / "file").write_text("text")
    zarr.create_array(tmp_path / "foreign.zarr", shape=(3,), dtype="f4")
    for name, match in [("none", "not there"), ("file", "not a Zarr store"), ("foreign.zarr", "not one of Kinema")]:
        with pytest.raises(InputError, match=match):
            Trajectory.load(tmp_path / name)
        with pytest.raises(InputError, match=match):
            store.verify(tmp_path / name)
