"""Pictures of the study of likelihood on singular data: distance against noise, and the laws that were fitted."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT

NAMES = {1: "a curve, d = 1", 2: "a sheet, d = 2"}


class Fits(Protocol):
    """W1 by noise, W1 unperturbed and at the recommended noise from a wide start, points by noise and of the truth."""

    @property
    def narrow(self) -> np.ndarray: ...
    @property
    def wide(self) -> np.ndarray: ...
    @property
    def clouds(self) -> np.ndarray: ...


def noise_picture(
    noises: Mapping[int, np.ndarray], found: Mapping[int, Sequence[Fits]], recommended: int, samples: int
) -> Picture:
    with house(6.4, 2.9, ncols=len(noises), sharey=True) as (figure, panels):
        for axes, (dim, rows) in zip(panels, found.items()):
            apart, places = np.array([one.narrow for one in rows]), np.arange(len(noises[dim]))
            wide = np.array([one.wide for one in rows])
            axes.axvline(recommended, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)), zorder=0, label="recommended noise")
            axes.fill_between(places, apart.min(0), apart.max(0), color=SERIES_LIGHT[0], alpha=0.15, lw=0)
            axes.plot(places, apart.mean(0), marker=MARKERS[0], color=SERIES_LIGHT[0], label="narrow start")
            style = {"ls": "", "marker": MARKERS[3], "mfc": "none", "color": SERIES_LIGHT[1]}
            axes.plot([0, recommended], wide.mean(0), **style, label="wide start")
            axes.set_xticks(places, [f"{noise:.2g}" for noise in noises[dim]])
            axes.set(title=NAMES[dim], xlabel="noise added to the data")
        panels[0].set(ylabel="W1 to the true law")
        panels[0].set_ylim(bottom=0)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    alt = "Distance to the true law against the noise added to the data, for a curve and a sheet"
    words = f"{samples} samples, noise in their standard deviations; mean over seeds and range."
    return Picture("noise", figure, alt, words)


def fits_picture(noises: Mapping[int, np.ndarray], found: Mapping[int, Fits], recommended: int) -> Picture:
    """The true laws, and those fitted without noise, at the recommended noise and at most noise."""
    with house(6.8, 3.7, nrows=len(found), ncols=4, squeeze=False) as (figure, grid):
        for row, (dim, one) in zip(grid, found.items()):
            for i, (axes, place) in enumerate(zip(row, (-1, 0, recommended, len(noises[dim]) - 1))):
                noise = f"noise {noises[dim][place]:.2g}" if place else "no noise"
                axes.set_title("truth" if place < 0 else f"{noise}\nW1 {one.narrow[place]:.3f}", size=9)
                _draw(axes, one.clouds[place], dim, LIGHT["ink"] if place < 0 else SERIES_LIGHT[i - 1])
                axes.set(aspect="equal", xticks=[], yticks=[], **_limits(one.clouds[-1]))
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(NAMES[dim])
    alt = "The true laws and fits at three noise levels: points along a curve, a net over a sheet seen from above"
    words = "Gaps between points (above) and meshes seen from above (below) hold equal mass. First seed."
    return Picture("fits", figure, alt, words)


def _draw(axes, cloud: np.ndarray, dim: int, colour: str) -> None:
    """Every sixth point of a curve; every other line of the net over a sheet."""
    if dim == 1:
        axes.plot(*cloud[::6].T, ls="", marker="o", ms=2.2, mec="none", color=colour)
        return
    side = round(len(cloud) ** 0.5)
    net = cloud.reshape(side, side, -1)
    for lines in (net[::2].transpose(1, 0, 2), net[:, ::2]):
        axes.plot(lines[..., 0], lines[..., 1], lw=0.55, color=colour, solid_joinstyle="round")


def _limits(cloud: np.ndarray) -> dict[str, tuple[float, float]]:
    """Those of the truth from above, with room for what strays."""
    low, high = cloud[:, :2].min(0), cloud[:, :2].max(0)
    room = 0.15 * (high - low)
    return {name: (a, b) for name, a, b in zip(("xlim", "ylim"), low - room, high + room)}
