"""Pictures of `masked_diffusion`."""

import numpy as np

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT, SERIES_MIDDLE
from kinema.studies.masked_diffusion_digits import LEVELS, PIXELS, Digits
from kinema.studies.masked_diffusion_toys import BITS, ZIPF, Draws, Exactness, Law

SHOWN = (0, 4, 8, 16, 24, 32, 48, 64)  # pixels known in a filmstrip


def error_picture(found: list[Exactness]) -> Picture:
    with house(4.8, 3.1) as (figure, axes):
        grid = found[0].curve[0]
        curves = np.array([one.curve[1] for one in found])
        axes.fill_between(grid, curves.min(0), curves.max(0), color=SERIES_LIGHT[0], alpha=0.15, lw=0)
        axes.plot(grid, curves.mean(0), color=SERIES_LIGHT[0], lw=1)
        for i, how in enumerate(("ancestral", "parallel", "first_hitting")):
            calls = [n for name, n in found[0].sampled if name == how]
            values = np.mean([[one.sampled[how, n] for n in calls] for one in found], 0)
            size = 8 if how == "first_hitting" else 5
            axes.plot(calls, values, MARKERS[i], color=SERIES_LIGHT[i], ms=size, label=how.replace("_", " "), zorder=3)
        floor = np.mean([one.floor for one in found])
        axes.axhline(floor, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)))
        axes.text(5, 0.93 * floor, "independent draws of it", va="top", color=LIGHT["soft"], size=9)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="distance to the law")
        axes.set(xlim=(0.9, 300), ylim=(0.6 * floor, 0.8))
        axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axes.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        axes.minorticks_off()
        axes.legend()
    alt = "Total variation to a joint law of four variables against steps: first hitting lies at the least in four"
    return Picture("steps", figure, alt, "Points are draws, the line is the ancestral sampler's exact law.")


def temperature_picture(laws: dict[tuple[int, int], Law], steps: tuple[int, ...], draws: list[Draws]) -> Picture:
    rank, names = np.arange(1, len(ZIPF) + 1), [*BITS.items()]
    with house(7.4, 3.0, ncols=2) as (figure, (left, right)):
        for i, (name, bits) in enumerate(names):
            style = {"color": SERIES_LIGHT[i + 1], "label": f"{name}, {bits} bits"}
            left.plot(steps, [laws[bits, n].temperature for n in steps], marker=MARKERS[i + 1], **style)
            right.plot(rank, laws[bits, steps[-1]].p / ZIPF, **style)
        ours = {"color": SERIES_LIGHT[0], "label": "values drawn apart"}
        mean = np.mean([one.temperature for one in draws])
        left.plot(steps[-1:], [mean], "o", ms=8, **ours)
        left.axhline(1, color=SERIES_LIGHT[0], lw=1)
        right.axhline(1, color=SERIES_LIGHT[0], lw=1.6)
        left.set(xscale="log", xlabel="ancestral steps", ylabel="effective temperature", ylim=(0.5, 1.05))
        left.set_xticks(steps, [str(n) for n in steps])
        right.set(xscale="log", yscale="log", xlabel="rank of the token", ylim=(3e-3, 5))
        right.set_ylabel("drawn / asked for")
        right.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        right.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        left.minorticks_off()
        right.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, borderpad=0)
    alt = (
        "Effective temperature against ancestral steps by precision, and how often rare tokens are drawn at 4096 steps"
    )
    caption = (
        "Lines: the exact law of draws that include staying masked. Rare tokens all but vanish in half precision, and "
        "float32 takes a part of them. The large point was measured."
    )
    return Picture("temperature", figure, alt, caption)


def reveal_picture(found: Digits) -> Picture:
    """A digit a row, from nothing known to all."""
    start = np.full_like(found.road[:, :1], LEVELS)
    road = np.concatenate([start, found.road], 1)[:6, SHOWN]
    with house(0.62 * len(SHOWN), 0.62 * len(road) + 0.25) as (figure, axes):
        axes.imshow(sheet(road))
        axes.set_xticks(10 * np.arange(len(SHOWN)) + 4.5, [str(n) for n in SHOWN])
        axes.set_yticks([])
        axes.set_xlabel("pixels known, one a call")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    alt = "Six digits that appear pixel by pixel, masked pixels in blue"
    return Picture("reveal", figure, alt, "First hitting: 64 calls, in an order that is drawn with the digit.")


def digits_picture(found: Digits, calls: tuple[int, ...]) -> Picture:
    names = ["1 call" if n == 1 else f"{n} calls" for n in (*calls, PIXELS)]
    with house(5.6, 0.52 * len(names) + 0.1) as (figure, axes):
        axes.imshow(sheet(found.drawn))
        axes.set_yticks(10 * np.arange(len(names)) + 4.5, names)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    alt = "Ten digits drawn in each number of calls: noise in one call, digits in many"
    return Picture("digits", figure, alt, "One trained network; pixels of a call are drawn as if independent.")


def sheet(x: np.ndarray) -> np.ndarray:
    """Rows of digits as one image in colours, masked pixels in blue."""
    ink, paper, blue = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in colours())
    shade = np.linspace(0, 1, LEVELS)[:, None]
    palette = np.concatenate([paper + shade * (ink - paper), 0.45 * blue[None] + 0.55 * paper, paper[None]])
    tiles = np.pad(x.reshape(*x.shape[:2], 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=LEVELS + 1)
    return palette[tiles.transpose(0, 2, 1, 3).reshape(10 * x.shape[0], -1)]


def colours() -> tuple[str, str, str]:
    return LIGHT["ink"], LIGHT["paper"], SERIES_MIDDLE[0]
