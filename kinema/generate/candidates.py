"""Every deterministic solver of the library on every grid that suits a path: what a solver is chosen from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from kinema.errors import InputError, unknown
from kinema.generate.path.path import Path, in_float64
from kinema.generate.solver import (
    Grid,
    ModelStatistics,
    Plan,
    adams,
    deis,
    dpm_solver_v3,
    dpmpp,
    euler,
    ghvb,
    grids,
    heavy_ball,
    heun,
    nesterov,
    unipc,
)
from kinema.generate.solver.registry import LIMIT

Build = Callable[[Path, Grid], Plan]
VELOCITY = {"extrapolates": "velocity"}
NUMBERS = (1.5, 2.5, 3.3, 3.8)  # of momentum, from stable to accurate
ENDS = (3.0, 4.5, LIMIT)  # log-SNRs before the last step: few calls are better spent above the path's end


def zoo(
    path: Path, nfe: int, *, solvers: Sequence[str] = (), statistics: ModelStatistics | None = None
) -> dict[str, Plan]:
    """Plans of at most `nfe` calls by name, "solver on grid", from simple to complex.

    Solvers: Euler, Heun, DPM-Solver and DPM-Solver++, UniPC, DEIS, Adams-Bashforth with real and with fixed weights,
    GHVB, heavy ball, Nesterov; DPM-Solver-v3 where `statistics` are given. Grids: equal steps in time, its square root,
    log-SNR and Karras' power, the last two to several ends. What a path does not allow is left out. `solvers` are the
    beginnings of the names to take ("dpmpp", "ghvb-3.8"), all without.

    Example:
        >>> "dpmpp-2m on karras to 4.5" in zoo(path, 8, solvers=["dpmpp-2m"])
        True

    Raises:
        InputError: nfe < 1; an unknown beginning in `solvers`; a path on which no solver runs.
    """
    grids.check_count("nfe", nfe)
    found: dict[str, Plan] = {}
    every = list(_solvers(nfe, statistics))
    for wanted in solvers:
        if not any(name.startswith(wanted) for name, _, _ in every):
            raise InputError(unknown("solver", wanted, [name for name, _, _ in every]))
    laid: dict[int, dict[str, Grid]] = {}
    for solver, build, steps in every:
        if solvers and not solver.startswith(tuple(solvers)):
            continue
        if steps not in laid:
            laid[steps] = _grids(path, steps)
        for name, grid in laid[steps].items():
            with suppress(InputError):
                found[f"{solver} on {name}"] = build(path, grid)
    if not found:
        raise InputError(f"path {type(path).__name__} suits no solver: none of the library's grids can be laid on it")
    return found


def _grids(path: Path, steps: int) -> dict[str, Grid]:
    """Ways to lay steps on the path."""
    low, high = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    found: dict[str, Grid] = {}
    with suppress(InputError):
        found["uniform time"] = grids.uniform_time(path, steps)
        found["root time"] = grids.polynomial(path, steps)
    for end in dict.fromkeys(min(high, end) for end in ENDS):
        for name, make in (("log-snr", grids.log_snr), ("karras", grids.karras)):
            with suppress(InputError):
                found[f"{name} to {end:.3g}"] = make(path, steps, low=max(low, -LIMIT), high=end)
    return found


def _solvers(nfe: int, statistics: ModelStatistics | None) -> Iterator[tuple[str, Build, int]]:
    """Names, builders and numbers of steps, from simple to complex."""

    def named(name: str, build: Callable[..., Plan], **options) -> tuple[str, Build, int]:
        return name, lambda path, grid: build(path, grid, **options), nfe

    yield named("euler", euler)
    yield named("euler, velocity", euler, **VELOCITY)
    yield named("dpmpp-2m", dpmpp, order=2)
    yield named("dpmpp-2m, heun", dpmpp, order=2, variant="heun")
    yield named("dpmpp-3m", dpmpp, order=3)
    yield named("dpmpp-3m, lower at the end", dpmpp, order=3, lower_final=True)
    yield named("unipc-2, bh1", unipc, order=2, variant="bh1")
    for order in (2, 3, 4):
        yield named(f"unipc-{order}", unipc, order=order)
    for order in (2, 3, 4):
        yield named(f"deis-{order}", deis, order=order)
        yield named(f"lms-{order}", adams, order=order, start="heun")
        yield named(f"lms-{order}, velocity", adams, order=order, start="heun", **VELOCITY)
        yield named(f"plms-{order}", adams, order=order, variable=False)
    for options, end in (({}, ""), (VELOCITY, ", velocity")):
        # 2 calls a step, 1 in a last step onto s = 0
        yield f"heun{end}", lambda path, grid, options=options: heun(path, grid, **options), (nfe + 1) // 2
    for number in NUMBERS:
        yield named(f"ghvb-{number}", ghvb, number=number)
        yield named(f"ghvb-{number}, velocity", ghvb, number=number, **VELOCITY)
    yield named("heavy ball-1.8, data", heavy_ball, number=1.8, extrapolates="data")
    yield named("heavy ball-3.8", heavy_ball, number=3.8)
    yield named("nesterov-3.8", nesterov, number=3.8)
    for order in (1, 2, 3) if statistics is not None else ():
        yield named(f"dpm-solver-v3, order {order}", dpm_solver_v3, order=order, statistics=statistics)
