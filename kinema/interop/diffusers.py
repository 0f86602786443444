"""Every solver of Kinema as one scheduler of diffusers: torch arithmetic on a plan, no JAX.

A plan is numbers, so the scheduler only has to look them up: row j makes of the sample x, the network's output y, the
anchor and the history H

    h = P x + Q y + E H0,    x <- M[0] . (x, anchor, h, H) + d[0] + c xi,    anchor <- M[1] . (x, anchor, h, H) + d[1]

with P and Q from the plan and the prediction type, fused in float64. See `kinema.generate.solver.plan`.
"""

import inspect
from typing import Any, ClassVar

import numpy as np

from kinema.errors import InputError, choose, require, unknown
from kinema.generate.solver import SOLVERS, Plan, grids

try:
    import torch
    from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError:
    require("torch", "diffusers")
    require("diffusers", "diffusers")
    raise

PATHLESS = {name: named for name, named in SOLVERS.items() if name not in ("euler-maruyama", "predictor-corrector")}


class KinemaScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler for any pipeline of a variance-preserving model; `solver` is a name in `kinema list solvers`.

    `solver_options` go to the solver: `{"order": 3}`, `{"number": 3.3}`, `{"statistics": "run/statistics.safetensors"}`
    (rows that are numbers or have the shape of one sample). All other arguments mean what they mean in
    diffusers, so that `from_config` takes the configuration of the scheduler it replaces; clipping and thresholding of
    predictions are not taken over. Networks whose output holds a learned variance (`variance_type`) lose that half.

    The sample given to a call of `step` stands at the noise level of its timestep, also where a solver puts noise back
    first (churn, restart). Between calls the history is kept in float32; samples come back in the dtype they came in.

    Example:
        >>> pipe.scheduler = KinemaScheduler.from_config(pipe.scheduler.config, solver="dpmpp-3m")
        >>> pipe(num_inference_steps=12)

    Raises:
        InputError: unknown solver or option, one that needs the path itself ("euler-maruyama",
            "predictor-corrector"), unknown prediction type or spacing.
        MissingExtra: torch or diffusers is not installed.
    """

    _compatibles: ClassVar[list[str]] = [each.name for each in KarrasDiffusionSchedulers]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_karras_sigmas: bool = False,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        solver: str = "dpmpp-2m",
        solver_options: dict[str, Any] | None = None,
    ):
        choose(PREDICTIONS, prediction_type, "prediction_type")
        if final_sigmas_type not in ("zero", "sigma_min"):
            raise InputError(f"final_sigmas_type must be 'zero' or 'sigma_min', got {final_sigmas_type!r}")
        if timestep_spacing not in ("linspace", "leading", "trailing"):
            raise InputError(f"timestep_spacing must be 'linspace', 'leading' or 'trailing', got {timestep_spacing!r}")
        _check_solver(solver, solver_options or {})
        # In float32, as networks saw it in training; everything after this table is float64.
        self.alphas_cumprod: torch.Tensor = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,  # pyright: ignore[reportArgumentType]  (it refuses unknown names itself)
            trained_betas=trained_betas,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        ).alphas_cumprod.clone()
        if rescale_betas_zero_snr:
            # Stands for 0, whose ratio to the noise is no number; below its neighbour, which may be as small as 1e-9.
            self.alphas_cumprod[-1] = min(2**-24, float(self.alphas_cumprod[-2]) / 4)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(self) - 1, -1, -1)
        self.plan: Plan | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Any = None,
    ) -> None:
        """Make the plan: of `num_inference_steps` steps, or through the falling table indices `timesteps`.

        `timesteps` then holds one whole number for each network evaluation (more than steps for Heun, churn and
        restart) and `sigmas` the noise-to-data ratio there, not rounded, and at the end.

        Raises:
            InputError: both or neither of steps and timesteps; what `grids.discrete` and the solver refuse.
        """
        config = self._options
        spacing = "karras" if config.use_karras_sigmas and timesteps is None else config.timestep_spacing
        grid = grids.discrete(
            self.alphas_cumprod.double().numpy(),
            num_inference_steps,
            timesteps=None if timesteps is None else np.asarray(timesteps),
            spacing=spacing,
            offset=config.steps_offset,
            clean=config.final_sigmas_type == "zero",
        )
        plan = PATHLESS[config.solver](None, grid, **(config.solver_options or {}))
        if plan.extrapolates == "velocity":
            raise InputError("a table of diffusers has no velocity; extrapolate 'data' or 'noise'")
        self.plan, self.num_inference_steps = plan, grid.steps
        self._a, self._s, index = self._levels(plan)
        self._P, self._Q = PREDICTIONS[config.prediction_type][plan.extrapolates](self._a[:-1], self._s[:-1])
        self.timesteps = torch.from_numpy(np.round(index).astype(np.int64)).to(device)
        self.sigmas = torch.from_numpy((self._s / self._a).astype(np.float32))
        self._starts = np.flatnonzero(np.r_[True, plan.whole[:-1]])
        self._begin, self._position = None, None

    @property
    def order(self) -> int:
        """Evaluations in each step, where all but the last have the same number; else 1."""
        if self.plan is None or len(self._starts) < 2:
            return 1
        sizes = np.diff(self._starts)
        return int(sizes[0]) if (sizes == sizes[0]).all() else 1

    @property
    def step_index(self) -> int | None:
        """Evaluations done; None before the first."""
        return self._position if self.plan is not None else None

    @property
    def begin_index(self) -> int | None:
        return self._begin if self.plan is not None else None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, as image-to-image pipelines do: multistep methods then start up there.

        Raises:
            InputError: an evaluation that does not begin a step, or no plan yet.
        """
        self._planned()
        if begin_index not in self._starts:
            raise InputError(
                f"begin_index must be one of {self._starts.tolist()}, where steps begin, got {begin_index}"
            )
        self._begin, self._position = int(begin_index), None

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample itself: networks of this kind see it as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample for the next evaluation, from the network's output at this one.

        Calls are counted, so timesteps may repeat; the first must be given `timesteps[begin_index]`. `variance_noise`
        replaces the draw from `generator` in solvers that add noise.

        Raises:
            InputError: no plan yet; the plan has ended; a first timestep that is not that of the plan.
        """
        plan, j = self._turn(timestep)
        x, y = sample.to(torch.float32), self._mean(model_output, sample).to(torch.float32)
        h = _like(plan.A[j] + plan.B[j] * self._P[j], x) * x + _like(plan.B[j] * self._Q[j], x) * y
        if plan.E[j] and self._history:
            h = h + plan.E[j] * self._history[0]
        terms = (x, x if self._anchor is None else self._anchor, h, *self._history)
        x = _combine(plan.M[j, 0], plan.d[j, 0], terms)
        if plan.c[j]:
            x = x + plan.c[j] * _noise(x, generator, variance_noise)
        same = (plan.M[j, 0] == plan.M[j, 1]).all()
        self._anchor = x if same else _combine(plan.M[j, 1], plan.d[j, 1], terms)
        self._history = (h, *self._history)[: plan.history - 1]
        if j + 1 < plan.nfe and plan.n[j + 1]:
            x = plan.r[j + 1] * x + plan.n[j + 1] * _noise(x, generator, None)
        self._position = j + 1
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """a x + s z: at the evaluation that comes next, if `set_begin_index` was called; else at table indices `(n,)`.

        The first has the exact level where `timesteps` are rounded.
        """
        if self.begin_index is not None and (self._position or 0) < len(self.timesteps):
            j = self._begin if self._position is None else self._position
            return float(self._a[j]) * original_samples + float(self._s[j]) * noise
        squares = self.alphas_cumprod.to(original_samples.device)[timesteps.to(original_samples.device).long()]
        squares = squares.double().reshape(-1, *(1,) * (original_samples.ndim - 1))
        a, s = (level.to(original_samples.dtype) for level in (squares.sqrt(), (1 - squares).sqrt()))
        return a * original_samples + s * noise

    def __len__(self) -> int:
        return self._options.num_train_timesteps

    @property
    def _options(self) -> Any:
        """The configuration, whose names diffusers does not declare."""
        return self.config

    def _levels(self, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, s) at every evaluation and at the end, and the (fractional) table indices of the evaluations."""
        table = self.alphas_cumprod.double().numpy()
        index = len(table) * (1 - plan.t) - 1
        log_snr = np.interp(index, np.arange(len(table)), 0.5 * (np.log(table) - np.log1p(-table)))
        a, s = (1 + np.exp(-2 * log_snr)) ** -0.5, (1 + np.exp(2 * log_snr)) ** -0.5
        return np.r_[a, plan.grid.a[-1]], np.r_[s, plan.grid.s[-1]], index

    def _planned(self) -> Plan:
        if self.plan is None:
            raise InputError("there is no plan yet; call set_timesteps first")
        return self.plan

    def _turn(self, timestep: Any) -> tuple[Plan, int]:
        """The plan and the row whose turn it is: those of a shorter history soon after the beginning."""
        plan = self._planned()
        if self._position is None:
            self._position = self._first = self._begin or 0
            self._anchor, self._history = None, ()
            # The only look at a value: later ones would make the device wait.
            given, expected = float(torch.as_tensor(timestep).flatten()[0]), int(self.timesteps[self._first])
            if round(given) != expected:
                self._position = None
                raise InputError(
                    f"the first timestep must be timesteps[{self._first}]={expected}, got {given:g}; set_begin_index"
                    " tells where to start"
                )
        j = self._position
        if j >= plan.nfe:
            raise InputError(f"the plan has ended after {plan.nfe} evaluations; call set_timesteps to begin again")
        age = j - self._first
        return (plan.fallback[age] if age < len(plan.fallback) else plan), j

    def _mean(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The prediction, without the variance that some networks return beside it."""
        if str(self._options.variance_type).startswith("learned") and model_output.shape[1] == 2 * sample.shape[1]:
            return model_output[:, : sample.shape[1]]
        return model_output


# prediction type -> field -> (P, Q) with field = P x + Q y for a network output y, where a^2 + s^2 = 1
PREDICTIONS = {
    "epsilon": {"data": lambda a, s: (1 / a, -s / a), "noise": lambda a, s: (0 * a, 1 + 0 * a)},
    "sample": {"data": lambda a, s: (0 * a, 1 + 0 * a), "noise": lambda a, s: (1 / s, -a / s)},
    "v_prediction": {"data": lambda a, s: (a, -s), "noise": lambda a, s: (s, a)},
}


def _check_solver(name: str, options: dict[str, Any]) -> None:
    if name in SOLVERS and name not in PATHLESS:
        raise InputError(f"solver {name!r} needs the path of a Generator, which a table is not")
    build = choose(PATHLESS, name, "solver").build
    known = [option for option in inspect.signature(build).parameters if option not in ("path", "grid")]
    for option in options:
        if option not in known:
            raise InputError(unknown(f"option of {name}", option, known))


def _combine(coefficients: np.ndarray, constant: np.ndarray, terms: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The weighted sum and a constant, without terms of weight 0 (which may not exist yet)."""
    parts = [_like(c, term) * term for c, term in zip(coefficients, terms) if c.any()]
    total = parts[0] if parts else torch.zeros_like(terms[0])
    for part in parts[1:]:
        total = total + part
    return total + _like(constant, total) if constant.any() else total


def _like(coefficient: np.ndarray, x: torch.Tensor) -> float | torch.Tensor:
    """A number, or a tensor with the shape of one sample, for arithmetic with x."""
    if coefficient.ndim == 0:
        return float(coefficient)
    return torch.as_tensor(coefficient, dtype=x.dtype, device=x.device)


def _noise(x: torch.Tensor, generator: Any, given: torch.Tensor | None) -> torch.Tensor:
    if given is not None:
        return given.to(device=x.device, dtype=x.dtype)
    return randn_tensor(tuple(x.shape), generator=generator, device=x.device, dtype=x.dtype)
