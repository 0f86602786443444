"""The midpoint rule: m, the data prediction half-way, is held over the whole step.

x' = (s' / s) x + (a' - a s' / s) m
"""

from kinema.generate.path.path import in_float64
from kinema.generate.solver.plan import HERE, Draft, Plan


def midpoint(path, grid) -> Plan:
    """Second order, two evaluations a step."""
    a, s, times = grid.a, grid.s, (grid.times[:-1] + grid.times[1:]) / 2
    middle_a, _, middle_s = in_float64(path.coefficients, times)
    draft = Draft("midpoint", grid, extrapolates="data")
    for i, t in enumerate(times):
        half, whole = middle_s[i] / s[i], s[i + 1] / s[i]
        draft.add(i + 1, half, [middle_a[i] - a[i] * half], keep=HERE, whole=False)
        draft.add(i + 1, 0.0, [a[i + 1] - a[i] * whole], t=t, anchor=whole)
    return draft.plan()
