"""The scheduler inside diffusers, against diffusers' own schedulers with the same network, start and noise."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from kinema.errors import InputError
from kinema.generate.solver import SOLVERS
from kinema.interop.diffusers import PATHLESS, KinemaScheduler

diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)  # small tensors: more threads only wait for each other
SHAPE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks
    )
    return net.eval()


def noise(seed=1):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(scheduler, unet, x, *, begin=0, seed=2, scale=1.0):
    """A pipeline's loop. `scale` enlarges the network's output, which is small before training."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
    takes = "generator" in scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps[begin:]:
        y = scale * unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(y, t, x, **({"generator": generator} if takes else {})).prev_sample
    return x


def difference(x, reference):
    return float((x - reference).abs().max() / reference.abs().max())


DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
LOWER, SCALED = {"lower_final": True}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# peer, its own options, options of both, our solver, its options
CASES = {
    "2m": (DPM, {}, {}, "dpmpp-2m", LOWER),
    "2m-heun": (DPM, {"solver_type": "heun"}, {}, "dpmpp-2m", LOWER | {"variant": "heun"}),
    "2m-trailing": (DPM, {}, {"timestep_spacing": "trailing"}, "dpmpp-2m", LOWER),
    "2m-leading": (DPM, {}, {"timestep_spacing": "leading", "steps_offset": 1}, "dpmpp-2m", LOWER),
    "2m-karras": (DPM, {}, {"use_karras_sigmas": True}, "dpmpp-2m", LOWER),
    "2m-sigma-min": (DPM, {}, {"final_sigmas_type": "sigma_min"}, "dpmpp-2m", LOWER),
    "2m-scaled-linear": (DPM, {}, SCALED, "dpmpp-2m", LOWER),
    "2m-cosine": (DPM, {}, {"beta_schedule": "squaredcos_cap_v2"}, "dpmpp-2m", LOWER),
    "2m-v": (DPM, {}, {"prediction_type": "v_prediction"}, "dpmpp-2m", LOWER),
    "2m-data": (DPM, {}, {"prediction_type": "sample"}, "dpmpp-2m", LOWER),
    "3m": (DPM, {"solver_order": 3}, {}, "dpmpp-3m", LOWER | {"exact": False}),
    "sde-2m": (DPM, {"algorithm_type": "sde-dpmsolver++"}, {}, "sde-dpmpp-2m", LOWER),
    "unipc-2": (UNIPC, {"solver_order": 2}, {}, "unipc", {"order": 2}),
    "unipc-3": (UNIPC, {"solver_order": 3}, {}, "unipc", {"order": 3}),
    "deis-3": (DEIS, {"solver_order": 3}, {}, "deis", LOWER),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name, unet):
    kind, own, shared, solver, options = CASES[name]
    peer = getattr(diffusers, kind)(**own, **shared)
    ends = {"final_sigmas_type": "sigma_min"} if kind == DEIS else {}
    ours = KinemaScheduler(**shared, **ends, solver=solver, solver_options=options)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(10)
    assert ours.timesteps.tolist() == peer.timesteps.tolist()
    np.testing.assert_allclose(ours.sigmas, peer.sigmas, rtol=1e-4)
    reference = run(peer, unet, noise(), scale=3)
    assert torch.isfinite(reference).all()
    assert difference(run(ours, unet, noise(), scale=3), reference) < 2e-6


def test_a_table_that_ends_without_data(unet):
    """Zero terminal signal: the peer's stand-in for 0 is larger, so results agree only to its square root."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    peer = diffusers.DPMSolverMultistepScheduler(**options)
    ours = KinemaScheduler(**options, solver_options=LOWER)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(10)
    assert ours.sigmas[0] > 4096
    assert difference(run(ours, unet, noise()), run(peer, unet, noise())) < 1e-3


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_equals_ddim(kind, unet):
    peer = diffusers.DDIMScheduler(clip_sample=False, prediction_type=kind)
    ours = KinemaScheduler(solver="ddim", prediction_type=kind)
    peer.set_timesteps(10)
    ours.set_timesteps(timesteps=peer.timesteps)
    assert difference(run(ours, unet, noise(), scale=3), run(peer, unet, noise(), scale=3)) < 2e-6


def test_equals_heun(unet):
    peer = diffusers.HeunDiscreteScheduler(
        timestep_spacing="linspace", beta_schedule="linear", beta_start=1e-4, beta_end=0.02
    )
    ours = KinemaScheduler(solver="heun")
    peer.set_timesteps(10)
    ours.set_timesteps(timesteps=peer.timesteps.unique().flip(0).long())
    assert ours.timesteps.tolist() == peer.timesteps.tolist()
    assert ours.order == peer.order == 2
    reference = run(peer, unet, noise() * (peer.sigmas[0] ** 2 + 1) ** 0.5)
    assert difference(run(ours, unet, noise()), reference) < 5e-6


def test_equals_ddpm_in_a_pipeline(unet):
    """The whole DDPMPipeline, all steps of a short table, ancestral noise of the same generator."""
    ddpm = diffusers.DDPMScheduler(num_train_timesteps=20, clip_sample=False)
    pipe = diffusers.DDPMPipeline(unet, ddpm)
    pipe.set_progress_bar_config(disable=True)

    def images():
        return pipe(2, torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images

    reference = images()
    pipe.scheduler = KinemaScheduler.from_config(ddpm.config, solver="ancestral", timestep_spacing="trailing")
    np.testing.assert_allclose(images(), reference, atol=1e-5)  # its last variances are float32 differences
    assert np.ptp(reference) > 0.1


def test_repeated_timesteps_are_counted_not_searched(unet):
    """Karras spacing in a short table rounds to repeated timesteps, also the first, which diffusers' search skips."""
    table = {"num_train_timesteps": 30, "beta_end": 0.3, "use_karras_sigmas": True}
    peer, ours = diffusers.DPMSolverMultistepScheduler(**table), KinemaScheduler(**table)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(28)
    assert ours.timesteps.tolist() == peer.timesteps.tolist()
    assert len(ours.timesteps.unique()) < 28
    assert difference(run(ours, unet, noise(), scale=3), run(peer, unet, noise(), scale=3)) < 2e-6


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "unipc", "heun"])
def test_starts_in_the_middle(unet, solver):
    """From image to image: as if the plan were that of the remaining timesteps."""
    whole, rest = KinemaScheduler(solver=solver), KinemaScheduler(solver=solver)
    whole.set_timesteps(8)
    begin = 3 * whole.order
    whole.set_begin_index(begin)
    rest.set_timesteps(timesteps=whole.timesteps[begin:].unique().flip(0))
    image = 0.5 * noise(3)
    starts = [each.add_noise(image, noise(), whole.timesteps[begin].repeat(2)) for each in (whole, rest)]
    assert difference(*starts) < 1e-6
    results = run(whole, unet, starts[0], begin=begin, scale=3), run(rest, unet, starts[0], scale=3)
    assert difference(*results) < 1e-6
    peer = diffusers.DDPMScheduler()
    assert difference(starts[1], peer.add_noise(image, noise(), whole.timesteps[begin].repeat(2))) < 1e-6


@pytest.mark.parametrize("solver", PATHLESS)
def test_every_solver_keeps_the_law_of_gaussian_data(solver):
    """Data N(0, 0.25): the exact noise prediction brings unit noise to a standard deviation of 0.5."""
    options = {"churn": {"amount": 3.0, "low": 0.1, "high": 20.0}}.get(solver)
    scheduler = KinemaScheduler(solver=solver, solver_options=options, use_karras_sigmas=True)
    scheduler.set_timesteps(100)
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        square = 1 / (1 + float(sigma) ** 2)
        y = (1 - square) ** 0.5 * x / (0.25 * square + 1 - square)
        x = scheduler.step(y, t, x, generator).prev_sample
    first_order = {"euler": 0.02, "ddim": 0.02, "ancestral": 0.04, "reverse-diffusion": 0.03}
    assert abs(float(x.std()) - 0.5) < first_order.get(solver, 4 * 0.5 / (2 * 20_000) ** 0.5)


def test_dtype_of_the_sample_is_kept_and_the_history_is_not_rounded(unet):
    scheduler = KinemaScheduler()
    scheduler.set_timesteps(4)
    x = noise().half()
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
        assert x.dtype == torch.float16
        assert all(h.dtype == torch.float32 for h in scheduler._history)


def test_learned_variances_are_dropped():
    scheduler = KinemaScheduler(variance_type="learned_range", solver="ddim")
    x, results = noise(), []
    for y in (0.1 * x, torch.cat([0.1 * x, x], 1)):
        scheduler.set_timesteps(3)
        results.append(scheduler.step(y, scheduler.timesteps[0], x).prev_sample)
    assert torch.equal(*results)


def test_configuration_round_trip(tmp_path):
    first = KinemaScheduler(
        num_train_timesteps=50, prediction_type="v_prediction", solver="dpmpp-3m", solver_options={"lower_final": True}
    )
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["solver"] == "dpmpp-3m"
    for second in (KinemaScheduler.from_pretrained(tmp_path), KinemaScheduler.from_config(first.config)):
        assert dict(second.config)["solver_options"] == {"lower_final": True}
        assert torch.equal(second.alphas_cumprod, first.alphas_cumprod)
        second.set_timesteps(5)
        assert second.plan.name == "dpmpp-3m"
    back = diffusers.DDIMScheduler.from_config(first.config)
    assert back.config.prediction_type == "v_prediction"
    assert len(back.alphas_cumprod) == 50


def test_bad_input_is_refused(unet):
    with pytest.raises(InputError, match="did you mean 'dpmpp-2m'"):
        KinemaScheduler(solver="dpm-2m")
    with pytest.raises(InputError, match="unknown option of heun 'order'"):
        KinemaScheduler(solver="heun", solver_options={"order": 2})
    for name in sorted(set(SOLVERS) - set(PATHLESS)):
        with pytest.raises(InputError, match="needs the path"):
            KinemaScheduler(solver=name)
    with pytest.raises(InputError, match="unknown prediction_type 'flow_prediction'"):
        KinemaScheduler(prediction_type="flow_prediction")
    scheduler = KinemaScheduler(solver="heun")
    with pytest.raises(InputError, match="call set_timesteps first"):
        scheduler.step(noise(), 0, noise())
    with pytest.raises(InputError, match="either steps or timesteps"):
        scheduler.set_timesteps(4, timesteps=[3, 2])
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match=r"begin_index must be one of \[0, 2\]"):
        scheduler.set_begin_index(1)
    with pytest.raises(InputError, match=r"timesteps\[0\]=999, got 5"):
        scheduler.step(noise(), 5, noise())
    run(scheduler, unet, noise())
    with pytest.raises(InputError, match="ended after 3 evaluations"):
        scheduler.step(noise(), 0, noise())
