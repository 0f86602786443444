"""Users' files: what they hold comes back, and what should not be read is refused."""

import os
import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from kinema.errors import InputError, MissingExtra, StoreCorrupt
from kinema.motion import Dataset, Trajectory, read

h5py = pytest.importorskip("h5py")
Image = pytest.importorskip("PIL.Image")

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
TS = np.array([0.0, 0.5, 1.0])


def write(path, arrays):
    """The same named arrays in each format."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".zarr":
        for name, array in arrays.items():
            zarr.create_array(str(path), name=name, data=np.asarray(array))
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


@pytest.mark.parametrize("kind", [".npz", ".zarr", ".h5"])
def test_named_arrays(tmp_path, kind):
    arrays = {"ts": TS, "labels": np.arange(4), "constants/mass": np.ones((4, 2)), "x": X, "bodies/v": -X}
    data = read(write(tmp_path / f"a{kind}", arrays))
    assert sorted(data.arrays) == ["bodies/v", "x"] and np.array_equal(data.arrays["bodies/v"], -X)
    assert np.array_equal(data.ts, TS) and np.array_equal(data.labels, np.arange(4)) and len(data) == 4
    assert data.constants["mass"].shape == (4, 2) and data.meta == {"source": f"a{kind}"}
    traj = data.trajectory()
    assert traj.ensemble == 4 and len(traj) == 3 and traj.constants["label"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [".npz", ".zarr", ".h5"])
def test_a_lone_x_is_the_data(tmp_path, kind):
    data = read(write(tmp_path / f"a{kind}", {"x": X}))
    assert isinstance(data.arrays, np.ndarray) and np.array_equal(data.arrays, X) and data.ts is None
    with pytest.raises(InputError, match="no ts"):
        data.trajectory()


def test_unnamed_npz(tmp_path):
    np.savez(tmp_path / "a.npz", X)
    assert np.array_equal(read(tmp_path / "a.npz").arrays, X)


def test_our_own_store(tmp_path):
    traj = Trajectory(jnp.asarray(TS), {"x": X}, {"label": np.arange(4), "mass": np.ones(4)}, {"world": "balls"})
    traj.save(tmp_path / "a.zarr")
    data = read(tmp_path / "a.zarr")
    assert np.array_equal(data.arrays["x"], X) and data.labels.tolist() == [0, 1, 2, 3]
    assert list(data.constants) == ["mass"] and data.meta == {"world": "balls"}
    back = data.trajectory()
    assert (
        np.array_equal(back.states["x"], X) and back.meta == traj.meta and sorted(back.constants) == ["label", "mass"]
    )
    other = Dataset.from_trajectory(traj)
    assert np.array_equal(other.arrays["x"], X) and np.array_equal(other.labels, data.labels)


def test_a_single_trajectory_is_one_row(tmp_path):
    single = Trajectory(jnp.asarray(TS), X[0], {"steps": 5}, single=True)
    assert Dataset.from_trajectory(single).arrays.shape == (1, 3, 2)
    single.save(tmp_path / "a.zarr")
    assert read(tmp_path / "a.zarr").arrays.shape == (1, 3, 2) and read(tmp_path / "a.zarr").constants[
        "steps"
    ].shape == (1,)


def test_npz_keeps_where_it_comes_from(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, meta=np.array('{"world": "balls", "parameters": {"n": 2}}'))
    data = read(tmp_path / "a.npz")
    assert data.meta == {"source": "a.npz", "world": "balls", "parameters": {"n": 2}}
    assert np.array_equal(data.arrays, X)
    np.savez(tmp_path / "b.npz", x=X, meta=-X)  # numbers are data under any name
    assert sorted(read(tmp_path / "b.npz").arrays) == ["meta", "x"]
    for wrong in ("{", "[]", "[" * 100_000):
        np.savez(tmp_path / "c.npz", x=X, meta=np.array(wrong))
        with pytest.raises(StoreCorrupt, match=r"c\.npz: meta must be a JSON object"):
            read(tmp_path / "c.npz")


# -- what the numbers must be


@pytest.mark.parametrize("kind", [".npz", ".h5"])
@pytest.mark.parametrize(
    "change,match",
    [
        ({"x": np.where(np.arange(24).reshape(4, 3, 2) == 15, np.nan, X)}, "x is NaN or infinite in row 2"),
        ({"x": np.full((4, 3), np.inf)}, "row 0"),
        ({"x": X[:0]}, "x is empty"),
        ({"x": np.ones((4, 0))}, "x is empty"),
        ({"x": np.float32(3)}, "x is empty"),
        ({"y": X[:3]}, "y has 3 rows, x has 4"),
        ({"labels": np.arange(3)}, "labels has 3 rows"),
        ({"labels": np.ones(4)}, "labels must be"),
        ({"ts": TS[::-1]}, r"ts must increase, got ts\[1\]=0.5 after ts\[0\]=1.0"),
        ({"ts": TS[:2]}, r"x must have shape \(N, 2 frames"),
        ({"constants/mass": np.array([1, 2, np.nan, 4])}, "constants/mass is NaN or infinite in row 2"),
    ],
)
def test_bad_numbers(tmp_path, kind, change, match):
    path = write(tmp_path / f"a{kind}", {"x": X, "ts": TS, **change})
    with pytest.raises(InputError, match=match):
        read(path)


def test_text_and_dates_are_refused(tmp_path):
    for i, wrong in enumerate((np.array(["a", "b"]), np.array(["2020-01-01"] * 2, "datetime64[D]"))):
        np.savez(tmp_path / f"{i}.npz", x=wrong)
        with pytest.raises(InputError, match="not numbers"):
            read(tmp_path / f"{i}.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = ["a", "b"]
    with pytest.raises(InputError, match="not numbers"):
        read(tmp_path / "a.h5")


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="nothing at"):
        read(tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"known: \.zarr, \.npz"):
        read(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        read(tmp_path / "empty")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match="no Zarr v3 arrays"):
        read(tmp_path / "empty.zarr")
    np.savez(tmp_path / "a.npz", ts=TS)
    with pytest.raises(InputError, match="no arrays"):
        read(tmp_path / "a.npz")


# -- files are data


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.array([Bomb(), Bomb()], dtype=object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="x holds pickled objects"):
        read(tmp_path / "a.npz")
    with pytest.raises((InputError, StoreCorrupt)):
        read(tmp_path / "b.npz")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("kind", [".npz", ".h5"])
def test_damaged_files(tmp_path, kind):
    path = write(tmp_path / f"a{kind}", {"x": np.random.default_rng(0).normal(size=(100, 10))})
    whole = path.read_bytes()
    for i, damaged in enumerate((whole[:-200], whole[:20], b"", b"nonsense" * 50)):
        other = tmp_path / f"{i}{kind}"
        other.write_bytes(damaged)
        with pytest.raises((StoreCorrupt, InputError)):
            read(other)


def test_hdf5_never_leads_to_another_file(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    np.asarray(X).tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["y"] = X
        file["x"] = h5py.ExternalLink("secret.h5", "/x")
    assert list(read(tmp_path / "link.h5").arrays) == ["y"]
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("x", (4, 3, 2), "f4", external=[(str(tmp_path / "raw"), 0, X.nbytes)])
    layout = h5py.VirtualLayout((4, 3, 2), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (4, 3, 2))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    for name in ("external", "virtual"):
        with pytest.raises(InputError, match="another file"):
            read(tmp_path / f"{name}.h5")


def test_foreign_zarr_with_a_codec_that_runs_code(tmp_path):
    write(tmp_path / "a.zarr", {"x": X})
    spec = tmp_path / "a.zarr" / "x" / "zarr.json"
    spec.write_text(spec.read_text().replace('"zstd"', '"numcodecs.pickle"'))
    with pytest.raises(InputError, match="pickle"):
        read(tmp_path / "a.zarr")


def test_damaged_foreign_zarr(tmp_path):
    write(tmp_path / "a.zarr", {"x": X})
    chunk = tmp_path / "a.zarr" / "x" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(StoreCorrupt, match="x is damaged"):
        read(tmp_path / "a.zarr")


def test_foreign_zarr_links_lead_nowhere(tmp_path):
    write(tmp_path / "a.zarr", {"x": X})
    chunk = tmp_path / "a.zarr" / "x" / "c" / "0" / "0" / "0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link out of"):
        read(tmp_path / "a.zarr")


def test_missing_libraries_name_their_extra(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    with monkeypatch.context() as patch, pytest.raises(MissingExtra, match=r"kinema\[images\]"):
        patch.setitem(sys.modules, "PIL.Image", None)
        read(tmp_path / "p")
    path = write(tmp_path / "a.h5", {"x": X})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"kinema\[hdf5\]"):
        read(path)


# -- pictures


def picture(path, value, size=(5, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_pictures_and_classes(tmp_path):
    picture(tmp_path / "p" / "cat" / "2.png", (255, 0, 51))
    picture(tmp_path / "p" / "ant" / "1.png", (0, 102, 0))
    data = read(tmp_path / "p")
    assert data.arrays.shape == (2, 4, 5, 3) and data.arrays.dtype == np.float32
    assert np.allclose(data.arrays[1, 0, 0], [1.0, 0.0, 0.2]) and np.allclose(data.arrays[0, 0, 0], [0, 0.4, 0])
    assert data.labels.tolist() == [0, 1] and data.meta["classes"] == ["ant", "cat"]


def test_a_picture_is_read_row_by_row(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "p" / f"{i}.png")
    assert np.array_equal(read(tmp_path / "p").arrays, pixels.astype(np.float32) / 255)


def test_gray_pictures_have_one_channel(tmp_path):
    for i in range(3):
        picture(tmp_path / "p" / f"{i}.png", 51 * i, mode="L")
    data = read(tmp_path / "p")
    assert (
        data.arrays.shape == (3, 4, 5, 1)
        and np.allclose(data.arrays[:, 0, 0, 0], [0, 0.2, 0.4])
        and data.labels is None
    )


def test_bad_pictures(tmp_path):
    picture(tmp_path / "p" / "a.png", 0)
    picture(tmp_path / "p" / "b.png", 0, size=(6, 4))
    with pytest.raises(InputError, match=r"b.png is 6 x 4 pixels, .*a.png 5 x 4"):
        read(tmp_path / "p")
    (tmp_path / "p" / "b.png").write_bytes((tmp_path / "p" / "a.png").read_bytes()[:40])
    with pytest.raises(StoreCorrupt, match=r"b\.png"):
        read(tmp_path / "p")
    (tmp_path / "p" / "b.png").unlink()
    picture(tmp_path / "q" / "secret.png", 0)
    (tmp_path / "p" / "c.png").symlink_to(tmp_path / "q" / "secret.png")
    with pytest.raises(InputError, match="link out of"):
        read(tmp_path / "p")


# -- The Well


def well(path, spec, count=2, frames=3, grid=(4, 5)):
    """A file with one field for each (name, order, sample_varying, time_varying, dim_varying)."""
    r = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="flow", grid_type="cartesian", n_spatial_dims=len(grid), n_trajectories=count)
        file.attrs["simulation_parameters"] = ["nu"]
        dims = file.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"][: len(grid)]
        dims["time"] = np.arange(float(frames))
        for name, n in zip("xy", grid):
            dims[name] = np.linspace(0, 1, n)
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = ["nu"]
        scalars["nu"] = np.array([0.1, 0.2])[:count]
        scalars["nu"].attrs.update(sample_varying=True, time_varying=False)
        for order in range(3):
            group = file.create_group(f"t{order}_fields")
            group.attrs["field_names"] = [name for name, o, *_ in spec if o == order] or np.array([], "S1")
            for name, o, sample, time, varying in spec:
                if o == order:
                    shape = (
                        [count] * sample
                        + [frames] * time
                        + [n for n, v in zip(grid, varying) if v]
                        + [len(grid)] * order
                    )
                    group[name] = r.normal(size=shape).astype(np.float32)
                    group[name].attrs.update(sample_varying=sample, time_varying=time, dim_varying=np.array(varying))
    return path


def test_well_fields_have_their_components_first(tmp_path):
    spec = [
        ("density", 0, True, True, [True, True]),
        ("velocity", 1, True, True, [True, True]),
        ("stress", 2, True, True, [True, True]),
    ]
    data = read(well(tmp_path / "a.hdf5", spec))
    with h5py.File(tmp_path / "a.hdf5") as file:
        velocity, stress = file["t1_fields/velocity"][()], file["t2_fields/stress"][()]
    assert {name: x.shape for name, x in data.arrays.items()} == {
        "density": (2, 3, 4, 5),
        "velocity": (2, 3, 2, 4, 5),
        "stress": (2, 3, 2, 2, 4, 5),
    }
    assert np.array_equal(data.arrays["velocity"][1, 2, 1], velocity[1, 2, :, :, 1])
    assert np.array_equal(data.arrays["stress"][1, 2, 0, 1], stress[1, 2, :, :, 0, 1])
    assert data.constants["nu"].tolist() == [0.1, 0.2] and data.ts.tolist() == [0, 1, 2]
    assert data.trajectory().ensemble == 2 and data.meta["dataset"] == "flow"


def test_well_axes_that_do_not_vary(tmp_path):
    spec = [
        ("moving", 0, True, True, [True, True]),
        ("still", 1, False, False, [True, False]),
        ("shared", 0, False, True, [False, True]),
    ]
    data = read(well(tmp_path / "a.hdf5", spec))
    with h5py.File(tmp_path / "a.hdf5") as file:
        still, shared = file["t1_fields/still"][()], file["t0_fields/shared"][()]
    assert data.constants["still"].shape == (2, 2, 4, 5) and data.arrays["shared"].shape == (2, 3, 4, 5)
    assert np.array_equal(data.constants["still"][1, 1, :, 3], still[:, 1])
    assert np.array_equal(data.arrays["shared"][0, 2, 1], shared[2]) and "still" not in data.arrays


def test_well_that_contradicts_itself(tmp_path):
    path = well(tmp_path / "a.hdf5", [("density", 0, True, True, [True, True])])
    with h5py.File(path, "a") as file:
        file["t0_fields/density"].attrs["sample_varying"] = False
    with pytest.raises(InputError, match=r"density has shape .* does not fit"):
        read(path)


def test_well_links_lead_nowhere(tmp_path):
    path = well(tmp_path / "a.hdf5", [("density", 0, True, True, [True, True])])
    well(tmp_path / "b.hdf5", [("density", 0, True, True, [True, True])])
    with h5py.File(path, "a") as file:
        del file["t0_fields/density"]
        file["t0_fields/density"] = h5py.ExternalLink("b.hdf5", "/t0_fields/density")
    with pytest.raises(InputError, match="link to somewhere else"):
        read(path)


def test_importing_readers_is_light():
    code = "import sys, kinema.motion.readers; print([m for m in ('zarr', 'h5py', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
