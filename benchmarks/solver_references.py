"""What two research repositories' own solvers return on a small exact problem, frozen for the tests.

    python benchmarks/solver_references.py MOMENTUM DPM_SOLVER_V3

takes folders of sWizad/momentum-diffusion (7d324104) and thu-ml/DPM-Solver-v3 (ba168717), needs torch and diffusers
0.42.1, and writes tests/generate/peers/momentum.json and dpm_solver_v3.json. Their files are imported as they are, in
double precision on the CPU; problem and start are those of peer_references.py.
"""

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer_references import FOLDER, MIXTURE, data_prediction

NUMBERS = (0.8, 1.0, 1.8, 2.0, 2.5, 3.8, 4.0, 4.5)
STEPS = (10, 20)


def load(file: Path):
    """A file of a repository as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_momentum(folder: Path) -> dict:
    """Heavy ball, its generalization and Nesterov, as wrappers of diffusers' DDIM."""
    import diffusers

    kinds = load(folder / "stable_diffusion" / "diffusion" / "momentum_scheduler.py")
    table = json.loads((FOLDER / "diffusers.json").read_text())["alphas_cumprod"]
    start = np.round(np.random.default_rng(2).normal(size=(3, 2)), 6)
    results = {}
    for name, kind in (("ghvb", "GHVBScheduler"), ("hb", "PLMSWithHBScheduler"), ("nesterov", "PLMSWithNTScheduler")):
        for number in NUMBERS:
            for steps in STEPS:
                ddim = diffusers.DDIMScheduler(num_train_timesteps=len(table), clip_sample=False)
                ddim.alphas_cumprod = torch.tensor(table, dtype=torch.float64)
                ddim.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
                ddim.set_timesteps(steps)
                scheduler, x = getattr(kinds, kind)(ddim, order=number), torch.tensor(start)
                for t in ddim.timesteps:
                    square = float(ddim.alphas_cumprod[t])
                    a, s = square**0.5, (1 - square) ** 0.5
                    x = scheduler.step((x - a * data_prediction(x, a, s)) / s, t, x)
                results[f"{name}-{number:g}-{steps}"] = x.tolist()
    timesteps = {steps: (len(table) // steps * np.arange(steps)[::-1]).tolist() for steps in STEPS}
    return {"mixture": MIXTURE, "start": start.tolist(), "timesteps": timesteps, "results": results}


V3_CASES = {  # steps, order, corrector, pseudo predictor, pseudo corrector, lower order at the end, half
    f"{steps}-{order}-{name}": (steps, order, *options)
    for steps in (5, 8)
    for order in (1, 2, 3)
    for name, options in (
        ("none", (False, False, False, True, False)),
        ("full", (True, False, False, True, False)),
        ("pseudo-predictor", (True, True, False, False, False)),
        ("pseudo-corrector", (True, False, True, True, False)),
        ("early", (True, False, False, True, True)),
    )
}


@contextlib.contextmanager
def in_double_precision_on_the_cpu():
    """The repository converts times to float32 and moves everything to a GPU."""
    before = torch.get_default_dtype(), torch.FloatTensor, torch.Tensor.cuda
    torch.set_default_dtype(torch.float64)
    torch.FloatTensor = lambda values: torch.tensor([float(value) for value in values])
    torch.Tensor.cuda = lambda self: self
    yield
    torch.set_default_dtype(before[0])
    torch.FloatTensor, torch.Tensor.cuda = before[1:]


def from_v3(folder: Path) -> dict:
    """The class for any schedule, on a linear VP schedule, with made-up statistics of two coordinates."""
    module, random = load(folder / "dpm_solver_v3.py"), np.random.default_rng(3)
    rows, first, last = 31, 1.0, 1e-3
    waves = [np.cumsum(random.normal(size=(rows, 2)), 0) * 0.2 for _ in range(3)]
    table = {"l": 0.5 + 0.3 * np.tanh(waves[0]), "s": 0.5 * waves[1], "b": waves[2]}
    table = {name: np.round(values, 6) for name, values in table.items()}
    start, results, indices, ends = np.round(random.normal(size=(3, 2)), 6), {}, {}, ()
    with in_double_precision_on_the_cpu(), tempfile.TemporaryDirectory() as statistics:
        wide = {name: values[:, :, None, None] for name, values in table.items()}
        np.savez(f"{statistics}/l.npz", l=wide["l"])
        np.savez(f"{statistics}/sb.npz", s=wide["s"], b=wide["b"])
        schedule = module.NoiseScheduleVP("linear")

        def model(x, t):
            a, s = float(schedule.marginal_alpha(t[0])), float(schedule.marginal_std(t[0]))
            flat = x[:, :, 0, 0]
            return ((flat - a * data_prediction(flat, a, s)) / s)[:, :, None, None]

        for name, (steps, order, corrects, *flags, half) in V3_CASES.items():
            with contextlib.redirect_stdout(io.StringIO()):
                solver = module.DPM_Solver_v3(statistics, schedule, steps, first, last, device="cpu")
            x = torch.tensor(start)[:, :, None, None]
            pseudo, pseudo_corrector, lower = flags
            x = solver.sample(x, model, order, pseudo, corrects, pseudo_corrector, lower, half=half)
            results[name] = x[:, :, 0, 0].tolist()
            ends = float(solver.lambda_T), float(solver.lambda_0)
            indices[str(steps)] = [int(i) for i in solver.indexes]
    table = {name: values.tolist() for name, values in table.items()}
    return (
        {"mixture": MIXTURE, "start": start.tolist(), "ends": ends, "indices": indices} | table | {"results": results}
    )


if __name__ == "__main__":
    for name, make, folder in zip(("momentum", "dpm_solver_v3"), (from_momentum, from_v3), sys.argv[1:]):
        (FOLDER / f"{name}.json").write_text(json.dumps(make(Path(folder))) + "\n")
