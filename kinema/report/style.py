"""The house style: one set of colours for pages, charts and players, in light and in dark.

Text keeps a contrast of 4.5 and lines of 3 on their ground; the six series colours stay apart under protanopia,
deuteranopia and tritanopia (tested), and every chart tells series apart by marker as well.
"""

from importlib.resources import files

LIGHT = {
    "paper": "#fcfbf9",
    "panel": "#ffffff",
    "sunk": "#f4f2ee",
    "ink": "#1b1d21",
    "soft": "#5b616a",
    "line": "#e3dfd8",
    "accent": "#0a5a86",
    "good": "#0b6b4b",
    "good-ground": "#e4f2eb",
    "bad": "#9c3f0a",
    "bad-ground": "#fbebe0",
    "none": "#555b64",
    "none-ground": "#efedea",
}
DARK = {
    "paper": "#121417",
    "panel": "#191c20",
    "sunk": "#1d2025",
    "ink": "#e9e6e0",
    "soft": "#a3a9b2",
    "line": "#30343b",
    "accent": "#83c3ef",
    "good": "#67d6aa",
    "good-ground": "#12302a",
    "bad": "#f6a876",
    "bad-ground": "#3a2414",
    "none": "#b3b9c2",
    "none-ground": "#24282e",
}
# blue, rust, sea green, plum, ochre, slate
SERIES_LIGHT = ("#1a59b5", "#b34a17", "#4c9d7e", "#6a2c79", "#b58612", "#6a7077")
SERIES_DARK = ("#4c9df0", "#fa8f67", "#8debcb", "#bf6ca6", "#f3d566", "#aab6cb")
# between both, for what is drawn as an image and cannot change
SERIES_MIDDLE = ("#337bd3", "#d66d3f", "#6cc4a5", "#954c90", "#d4ae3c", "#8a939f")
MARKERS = ("o", "s", "^", "D", "v", "P")

SANS = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def css() -> str:
    """The style sheet of a page: colours as custom properties, then the rules of `assets/page.css`."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in {**colours, **_series(series)}.items())
        for colours, series in ((LIGHT, SERIES_LIGHT), (DARK, SERIES_DARK))
    )
    rules = files("kinema.report").joinpath("assets/page.css").read_text(encoding="utf-8")
    return (
        f":root{{color-scheme:light dark;--sans:{SANS};{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{{light}}}}}\n{rules}"
    )


def matplotlib_settings() -> dict:
    """`rcParams` of a chart: no ground of its own, thin lines, light ink (see `picture` for the dark one)."""
    from cycler import cycler

    soft, line, ink = LIGHT["soft"], LIGHT["line"], LIGHT["ink"]
    return {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": ink,
        "axes.labelsize": 9.5,
        "axes.labelcolor": soft,
        "axes.edgecolor": soft,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=SERIES_LIGHT),
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.8,
        "text.color": ink,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.handlelength": 1.6,
        "hatch.linewidth": 0.6,
    }


def _series(colours) -> dict[str, str]:
    return {f"series-{index}": colour for index, colour in enumerate(colours)}
