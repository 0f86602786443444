"""Figures as files: small SVG that follows light and dark, PNG where SVG would be large.

The SVG is drawn in the light colours and is valid anywhere; one `<style>` block of attribute selectors repaints it for
`prefers-color-scheme: dark`, so that it can stand in a page, in a README and in the docs without a second file.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

from kinema.errors import InputError
from kinema.report.style import DARK, LIGHT, SANS, SERIES_DARK, SERIES_LIGHT, matplotlib_settings

SVG_LIMIT = 150_000  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A drawing with the words that replace it (`alt`) and explain it (`caption`).

    `image` is a Matplotlib figure, or the bytes of an SVG or PNG. A figure that paints its own ground keeps it; one
    made with `charts.house()` has none and follows the reader's light or dark.

    Raises:
        InputError: an image of another kind, or no `alt`.
    """

    name: str
    image: Any
    alt: str
    caption: str = ""

    def __post_init__(self):
        if not self.alt.strip():
            raise InputError(f"picture {self.name!r} needs alt text: one sentence that says what it shows")
        if isinstance(self.image, str):
            object.__setattr__(self, "image", self.image.encode())
        if not hasattr(self.image, "savefig") and not (isinstance(self.image, bytes) and _kind(self.image)):
            raise InputError(f"picture {self.name!r} must be a Matplotlib figure, SVG or PNG, got {type(self.image)}")

    def encoded(self, limit: int = SVG_LIMIT) -> "Picture":
        """The same picture as bytes: SVG up to `limit` bytes, else the finest PNG that fits.

        Raises:
            InputError: no PNG of readable size fits either.
        """
        if isinstance(self.image, bytes):
            if len(self.image) <= limit:
                return self
            raise InputError(f"picture {self.name!r} has {len(self.image)} bytes, at most {limit} are kept")
        return Picture(self.name, _draw(self.image, limit, self.name), self.alt, self.caption)

    @property
    def kind(self) -> str:
        """`svg` or `png`, of an encoded picture."""
        return _kind(self.image)

    @property
    def width(self) -> float:
        """Natural width in CSS pixels, of an encoded picture."""
        if self.kind == "png":
            return int.from_bytes(self.image[16:20], "big") / 2  # drawn for screens of two dots a pixel
        found = re.search(rb'<svg[^>]*?\bwidth="([\d.]+)(pt|px|)"', self.image)
        if not found:
            return 480.0
        return float(found[1]) * (4 / 3 if found[2] == b"pt" else 1)


def _kind(data: bytes) -> str:
    if data.startswith(_PNG):
        return "png"
    return "svg" if re.match(rb"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE[^>]*>\s*)?(<!--.*?-->\s*)*<svg\b", data, re.S) else ""


def _draw(figure, limit: int, name: str) -> bytes:
    import matplotlib

    ground = figure.get_facecolor()
    adaptive = ground[3] == 0
    # ticks are made when a figure is drawn, by the settings of that moment; the salt makes equal figures equal bytes
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "kinema"} | (matplotlib_settings() if adaptive else {})
    with matplotlib.rc_context(settings):
        out = io.BytesIO()
        figure.savefig(out, format="svg", facecolor=ground, dpi=144, metadata={"Date": None, "Creator": None})
        svg = _restyle(out.getvalue().decode(), adaptive)
        if len(svg) <= limit:
            return svg
        for dpi in (192, 144, 96, 72):
            # raster cannot follow the reader's colours, so it brings light paper along
            png = _few_colours(figure, dpi, LIGHT["panel"] if adaptive else ground)
            if len(png) <= limit:
                return png
    raise InputError(f"picture {name!r} does not fit {limit} bytes as SVG or PNG; draw fewer points or panels")


def _few_colours(figure, dpi: int, ground) -> bytes:
    """A PNG of 256 colours, a third of the size and for charts the same to the eye. Pillow comes with Matplotlib."""
    from PIL import Image

    full, few = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", facecolor=ground, dpi=dpi)
    image = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(few, format="png", optimize=True)
    return few.getvalue()


def _restyle(svg: str, adaptive: bool) -> bytes:
    """Reader's fonts instead of Matplotlib's, coordinates to a hundredth of a point, and the dark colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {SANS}", svg)
    svg = re.sub(r"(font: [^;\"]*?px )'DejaVu Sans'[^;\"]*", rf"\g<1>{SANS}", svg)
    svg = re.sub(r'\b(d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    if adaptive:
        svg = re.sub(r"<svg\b[^>]*>", lambda found: found[0] + _dark_style(), svg, count=1)
    return svg.encode()


def _rounded(attribute: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), attribute)


def _dark_style() -> str:
    pairs = [*zip(SERIES_LIGHT, SERIES_DARK), *((LIGHT[name], DARK[name]) for name in ("ink", "soft", "line", "paper"))]
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}' for light, dark in pairs for kind in ("fill", "stroke")
    )
    # text without a colour of its own is black
    return f"<style>@media (prefers-color-scheme:dark){{text{{fill:{DARK['ink']}}}{rules}}}</style>"
