"""Momentum and fitted solvers inside diffusers: a small pipeline from noise to pictures, against plans run by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parents[1] / "generate"))

from plain_loop import run

from kinema.errors import InputError
from kinema.generate.solver import ModelStatistics
from kinema.interop.diffusers import KinemaScheduler

diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks
    )
    pipe = diffusers.DDPMPipeline(net.eval(), diffusers.DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Made-up statistics, one number for all and one for each pixel."""
    lam, folder = np.linspace(-5.1, 4.7, 61), tmp_path_factory.mktemp("statistics")
    linear = 1 / (1 + np.exp(lam))
    ModelStatistics(lam, linear, -0.2 * linear, 0.1 * linear).save(folder / "scalar.safetensors")
    each = np.random.default_rng(0).uniform(0.5, 1, (1, *SHAPE))
    wide = [(each * column.reshape(-1, 1, 1, 1)) for column in (linear, -0.2 * linear, 0.1 * linear)]
    ModelStatistics(lam, *wide).save(folder / "full.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("scalar", "full")}


def pictures(pipe, scheduler, steps=6):
    """What the pipeline returns, and the same plan in plain NumPy with the same network and start."""
    pipe.scheduler = scheduler
    images = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np").images
    start = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0)).double().numpy()
    indices = dict(zip(scheduler.plan.t, scheduler.timesteps))
    levels = {t: (a, s) for t, a, s in zip(scheduler.plan.t, scheduler._a, scheduler._s)}

    @torch.no_grad()
    def field(t, x):
        noise = pipe.unet(torch.tensor(x, dtype=torch.float32), indices[t]).sample.double().numpy()
        a, s = levels[t]
        return noise if scheduler.plan.extrapolates == "noise" else (x - s * noise) / a

    if scheduler.plan.M.ndim > 3:
        x = np.stack([run(scheduler.plan, field_of(field, i, start), start[i]) for i in range(2)])
    else:
        x = run(scheduler.plan, field, start)
    return images, (x / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)


def field_of(field, i, start):
    """The field of one of the samples: coefficients of a sample's shape have no batch axis."""
    return lambda t, x: field(t, x[None])[0]


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ghvb", {}),
        ("ghvb", {"number": 2.5, "variable": False, "start": "euler"}),
        ("hb", {"number": 1.8}),
        ("nesterov", {}),
        ("dpm-solver-v3", {}),
        ("dpm-solver-v3", {"statistics": "scalar", "order": 2}),
        ("dpm-solver-v3", {"statistics": "full", "pseudo_corrector": True}),
    ],
)
def test_in_a_pipeline(solver, options, pipe, files):
    if "statistics" in options:
        options = options | {"statistics": files[options["statistics"]]}
    config = diffusers.DDPMScheduler(clip_sample=False).config
    scheduler = KinemaScheduler.from_config(config, solver=solver, solver_options=options)
    images, truth = pictures(pipe, scheduler)
    assert np.ptp(images) > 0.1
    np.testing.assert_allclose(images, truth, atol=1e-4)


def test_statistics_are_kept_in_the_configuration_by_name(files, tmp_path):
    first = KinemaScheduler(solver="dpm-solver-v3", solver_options={"statistics": files["scalar"]})
    first.save_pretrained(tmp_path)
    second = KinemaScheduler.from_pretrained(tmp_path)
    for scheduler in (first, second):
        scheduler.set_timesteps(5)
    assert np.array_equal(first.plan.M, second.plan.M) and not first.plan.notes


def test_bad_input_is_refused(files):
    with pytest.raises(InputError, match="unknown option of ghvb 'order'"):
        KinemaScheduler(solver="ghvb", solver_options={"order": 3})
    missing = KinemaScheduler(solver="dpm-solver-v3", solver_options={"statistics": "nowhere.safetensors"})
    with pytest.raises(InputError, match="no weights at nowhere"):
        missing.set_timesteps(5)
    outside = KinemaScheduler(beta_end=0.04, solver="dpm-solver-v3", solver_options={"statistics": files["scalar"]})
    with pytest.raises(InputError, match=r"the statistics from -5\.1 to 4\.7"):
        outside.set_timesteps(5)
