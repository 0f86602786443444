"""Estimators of dimension from samples beside scikit-dimension: equal points and neighbours, hence equal numbers."""

import jax.numpy as jnp
import numpy as np
import skdim

from benchmarks.harness import Row, compare
from kinema.verify import data_dimension

POINTS, NEIGHBOURS = 1000, 20
SETS = {("sphere", 2, 20): 1, ("swiss roll", 2, 20): 1, ("sphere", 5, 100): 1}  # dimension, space: faster by


def run(seconds: float = 3.0) -> list[Row]:
    rows = []
    for (name, dimension, space), target in SETS.items():
        x = points(name, dimension, space)
        for method, sides in METHODS.items():
            mine, others = (lambda side=side, x=x: np.array(side(x)) for side in sides)
            case = f"{method}, {name} {dimension} in {space}"
            row = compare(
                case, "scikit-dimension", mine, others, target=target, seconds=seconds, tolerance=1e-3, least=5
            )
            print(f"  dimension {mine():.3f}, {1e3 * row.ours_ms / POINTS:.0f} microseconds a point")
            rows.append(row)
    return rows


def ours(method: str):
    return lambda x: float(data_dimension(jnp.asarray(x, jnp.float32), method=method, neighbours=NEIGHBOURS).dimension)


METHODS = {
    "two-nn": (ours("two-nn"), lambda x: skdim.id.TwoNN().fit(x).dimension_),
    "mle": (ours("mle"), lambda x: skdim.id.MLE(K=NEIGHBOURS).fit(x).dimension_),
    "local-pca": (
        ours("local-pca"),
        lambda x: skdim.id.lPCA().fit_pw(x, n_neighbors=NEIGHBOURS, n_jobs=1).dimension_pw_.mean(),
    ),
}


def points(name: str, dimension: int, space: int) -> np.ndarray:
    """Points of a set, turned by a random rotation into `space` dimensions."""
    random = np.random.default_rng(0)
    if name == "swiss roll":
        angle, height = 1.5 * np.pi * (1 + 2 * random.uniform(size=POINTS)), 21 * random.uniform(size=POINTS)
        x = np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1) / 10
    else:
        x = random.normal(size=(POINTS, dimension + 1))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    turn = np.linalg.qr(random.normal(size=(space, space)))[0][: x.shape[1]]
    return x @ turn
