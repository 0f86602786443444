"""Hard balls the slow way, in float64: every candidate time is a root that `numpy.roots` finds. A test reference."""

import numpy as np


def run(x, v, radius, mass, size, gravity, ts):
    """States (len(ts), n, 2) at times ts, and the number of hits. Written without a look at the engine."""
    x, v, now, hits, xs, vs = np.array(x, float), np.array(v, float), 0.0, 0, [], []
    for t in ts:
        while True:
            when, act = _next(x, v, radius, mass, size, gravity)
            if now + when >= t:
                break
            x, v = _fly(x, v, gravity, when)
            now, v, hits = now + when, act(x, v), hits + 1
        x, v = _fly(x, v, gravity, t - now)
        now = t
        xs.append(x)
        vs.append(v)
    return np.array(xs), np.array(vs), hits


def _fly(x, v, gravity, dt):
    a = np.array([0.0, -gravity])
    return x + v * dt + a * dt**2 / 2, v + a * dt


def _next(x, v, radius, mass, size, gravity):
    best, act = np.inf, None
    for i in range(len(x)):
        for axis in range(2):
            a = -gravity if axis == 1 else 0.0
            for wall, side in ((radius[i], -1), (size[axis] - radius[i], 1)):
                for t in _roots([a / 2, v[i, axis], x[i, axis] - wall]):
                    if t < best and side * (v[i, axis] + a * t) > 0:
                        best, act = t, lambda x, v, i=i, axis=axis: _flip(v, i, axis)
        for j in range(i + 1, len(x)):
            d, u, s = x[j] - x[i], v[j] - v[i], radius[i] + radius[j]
            for t in _roots([u @ u, 2 * d @ u, d @ d - s * s]):
                if t < best and (d + u * t) @ u < 0:
                    best, act = t, lambda x, v, i=i, j=j: _bounce(x, v, mass, i, j)
    return best, act


def _roots(coefficients):
    """Real roots; slightly negative ones are hits that rounding has put into the past."""
    found = np.roots(coefficients)
    real = found.real[np.abs(found.imag) <= 1e-12 * np.abs(found)]
    return np.maximum(real[real > -1e-11], 0.0)


def _flip(v, i, axis):
    v = v.copy()
    v[i, axis] *= -1
    return v


def _bounce(x, v, mass, i, j):
    """Impulse along the line of centres."""
    v, normal = v.copy(), (x[j] - x[i]) / np.linalg.norm(x[j] - x[i])
    impulse = 2 * mass[i] * mass[j] / (mass[i] + mass[j]) * ((v[j] - v[i]) @ normal)
    v[i] += impulse / mass[i] * normal
    v[j] -= impulse / mass[j] * normal
    return v
