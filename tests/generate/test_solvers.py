import math

import numpy as np
import pytest
from plain_loop import mixture_data, run

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.path import PATHS, VE, VP, Linear
from kinema.generate.path.path import in_float64
from kinema.generate.solver import grids
from kinema.generate.solver.phi import decay_moments
from kinema.generate.solver.registry import SOLVERS

PATH = VE(0.01, 50.0)
MIXTURE = {"weights": [0.4, 0.6], "means": [[-1.0], [1.2]], "variances": [0.1, 0.3]}
PLANS = {
    "euler": (lambda g: solver.euler(PATH, g), 1),
    "euler in t": (lambda g: solver.euler(PATH, g, extrapolates="velocity"), 1),
    "heun": (lambda g: solver.heun(PATH, g), 2),
    "heun on data": (lambda g: solver.heun(PATH, g, extrapolates="data"), 2),
    "heun in t": (lambda g: solver.heun(PATH, g, extrapolates="velocity"), 2),
    "2M midpoint": (lambda g: solver.dpmpp(PATH, g), 2),
    "2M heun": (lambda g: solver.dpmpp(PATH, g, variant="heun"), 2),
    "3M": (lambda g: solver.dpmpp(PATH, g, order=3, start="heun"), 3),
    "3M as published": (lambda g: solver.dpmpp(PATH, g, order=3, exact=False), 2),
    "DPM-Solver 3": (lambda g: solver.dpmpp(PATH, g, order=3, form="noise", start="heun"), 3),
    "LMS 3": (lambda g: solver.adams(PATH, g, order=3, start="heun"), 3),
    "LMS 4": (lambda g: solver.adams(PATH, g, start="heun"), 4),
    "AB 3 in t": (lambda g: solver.adams(PATH, g, order=3, extrapolates="velocity", start="heun"), 3),
    "DEIS 3": (lambda g: solver.deis(PATH, g, start="heun"), 3),
    "UniPC 1": (lambda g: solver.unipc(PATH, g, order=1, lower_final=False), 2),
    "UniPC 2": (lambda g: solver.unipc(PATH, g, order=2, lower_final=False), 3),
    "UniPC 3": (lambda g: solver.unipc(PATH, g, order=3, lower_final=False), 4),
}


def normal_cdf(x):
    return 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))


def flow_exactly(x, before, after):
    """The probability flow of a mixture on the line keeps quantiles: F_after(x') = F_before(x), by bisection."""

    def cdf(x, s):
        gap = x[:, None] - np.ravel(MIXTURE["means"])
        return normal_cdf(gap / np.sqrt(np.array(MIXTURE["variances"]) + s**2)) @ np.array(MIXTURE["weights"])

    level, low, high = cdf(x, before), np.full(len(x), -50.0), np.full(len(x), 50.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = cdf(middle, after) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def exact_field(plan, path=PATH):
    a, _, s = (dict(zip(plan.t, np.asarray(c))) for c in in_float64(path.coefficients, plan.t))
    ds = dict(zip(plan.t, np.gradient(np.ones(plan.nfe))))
    log_ratio = math.log(path.sigma_max / path.sigma_min) if isinstance(path, VE) else 0.0

    def field(t, x):
        data = mixture_data(MIXTURE, a[t], s[t], x)
        noise = (x - a[t] * data) / s[t]
        return {"data": data, "noise": noise, "velocity": -log_ratio * s[t] * noise}[plan.extrapolates]

    return field


def error(build, kind, steps, top=10.0, bottom=0.05):
    grid = KINDS[kind](steps, -math.log(top), -math.log(bottom))
    x = np.linspace(-1.5, 1.5, 12) * top
    plan = build(grid)
    y = run(plan, exact_field(plan), x[:, None])[:, 0]
    return np.abs(y - flow_exactly(x, top, bottom)).max()


KINDS = {
    "karras": lambda n, low, high: grids.karras(PATH, n, low=low, high=high, clean=False),
    "equal": lambda n, low, high: grids.karras(PATH, n, rho=1.0, low=low, high=high, clean=False),
    "log-snr": lambda n, low, high: grids.log_snr(PATH, n, low=low, high=high, clean=False),
}


if __name__ == "__main__":
    for kind in KINDS:
        for name, (build, order) in PLANS.items():
            e = [error(build, kind, n) for n in (80, 160, 320, 640)]
            print(kind, name, order, ["%.1e" % v for v in e], ["%.2f" % v for v in np.log2(np.array(e[:-1]) / np.array(e[1:]))])
    for top in (10., 2.,1.):
      for st in ("euler","heun"):
        for nm, b in (("lms4", lambda g: solver.adams(PATH,g,start=st)),("3M", lambda g: solver.dpmpp(PATH,g,order=3,start=st)),("lms3", lambda g: solver.adams(PATH,g,order=3,start=st)),("deis4", lambda g: solver.deis(PATH,g,order=4,start=st)),("unipc3", lambda g: solver.unipc(PATH,g,lower_final=False))):
            e = [error(b, "karras", n, top) for n in (40, 80, 160, 320, 640,1280)]
            print(top, st, nm, ["%.1e" % v for v in e], ["%.2f" % v for v in np.log2(np.array(e[:-1]) / np.array(e[1:]))])
