"""One self-contained HTML page: text, tables, charts and moving pictures, with nothing fetched from anywhere.

Everything given to a page is data and is escaped. Pictures stand in `<img>`, where SVG cannot run scripts, and the page
carries a content security policy that admits its own player (by hash) and no other script, host or form.
"""

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from kinema import __version__
from kinema.errors import InputError
from kinema.report import style
from kinema.report.animation import Animation, animate
from kinema.report.files import write_whole
from kinema.report.picture import Picture
from kinema.tables import Cell, Table, text

VERDICTS = ("reproduced", "falls short", "not run")
BROAD = 620  # CSS pixels; a wider picture scrolls in its box on a phone
_MARK = (
    '<svg viewBox="0 0 34 16" aria-hidden="true"><circle cx="5" cy="11" r="3.2" opacity=".25"/>'
    '<circle cx="13.5" cy="6.5" r="3.6" opacity=".5"/><circle cx="25.5" cy="8" r="5.6"/></svg>'
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='9.5' cy='8' r='5.5' fill='%230a64a8'/%3E%3Ccircle cx='2.5' cy='8' r='2' fill='%230a64a8' "
    "opacity='.45'/%3E%3C/svg%3E"
)


class Page:
    """A report under construction. Every `add_…` appends one block and returns the page.

    >>> page = Page("Two balls").add_text("Energy drifts by `1e-7` in 1000 hits.")
    >>> page.add_table(Table("Law errors", ("motion", "replay"), [("true", 0.0)])).html()[:15]
    '<!DOCTYPE html>'

    Raises:
        InputError: an empty title.
    """

    def __init__(self, title: str, *, lede: str = "", footer: str = ""):
        if not title.strip():
            raise InputError("a page needs a title")
        self.title, self.lede = title, lede
        self.footer = footer or f"Made by Kinema {__version__}."
        self._blocks: list[str] = []
        self._sections: list[list[str]] = []  # id, heading, badge
        self._taken: dict[str, int] = {}
        self._contents_at: int | None = None
        self._plays = False

    def add_heading(self, heading: str, level: int = 2) -> "Page":
        """A section (level 2) or subsection (3) with an address of its own."""
        if level not in (2, 3):
            raise InputError(f"level must be 2 or 3 (the title is level 1), got {level}")
        name = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        self._taken[name] = self._taken.get(name, 0) + 1
        name = name if self._taken[name] == 1 else f"{name}~{self._taken[name]}"
        if level == 2:
            self._sections.append([name, heading, ""])
        return self._add(f'<h{level} id="{name}">{_inline(heading)}</h{level}>')

    def add_text(self, words: str) -> "Page":
        """Paragraphs, separated by empty lines. `code`, *emphasis*; web addresses and arXiv numbers become links."""
        paragraphs = [part for part in re.split(r"\n\s*\n", words.strip()) if part.strip()]
        return self._add("".join(f"<p>{_inline(' '.join(part.split()))}</p>" for part in paragraphs))

    def add_contents(self) -> "Page":
        """A list of all sections of the page, with their verdicts."""
        self._contents_at = len(self._blocks)
        return self._add("")

    def add_verdict(self, verdict: str, why: str = "") -> "Page":
        """A badge, "reproduced", "falls short" or "not run", and the reason beside it."""
        if verdict not in VERDICTS:
            raise InputError(f"verdict must be one of {', '.join(VERDICTS)}, got {verdict!r}")
        badge = f'<span class="badge {verdict.replace(" ", "-")}">{verdict}</span>'
        if self._sections:
            self._sections[-1][2] = badge
        return self._add(f'<p class="verdict">{badge}<span class="why">{_inline(why)}</span></p>')

    def add_settings(self, settings: Mapping[str, Any], title: str = "Settings", unfolded: bool = False) -> "Page":
        """Names and values, folded away unless `unfolded`. Nested mappings are flattened to "a.b"."""
        rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in _flat(settings))
        fold = " open" if unfolded else ""
        return self._add(
            f'<details class="settings"{fold}><summary>{html.escape(title)}</summary><dl>{rows}</dl></details>'
        )

    def add_table(self, table: Table) -> "Page":
        """A table that scrolls sideways inside its own box."""
        wide = " wide" if len(table.columns) > 6 else ""
        note = f'<p class="note">{_inline(table.note)}</p>' if table.note else ""
        box = _scroll(table.html(), table.title or "table")
        return self._add(f'<div class="table{wide}">{box}{note}</div>')

    def add_figure(self, figure: Any, *, alt: str = "", caption: str = "") -> "Page":
        """A Matplotlib figure, SVG or PNG bytes, or a `Picture` (which brings `alt` and `caption` along).

        Raises:
            InputError: no `alt` text, or an image of another kind.
        """
        picture = figure if isinstance(figure, Picture) else Picture("figure", figure, alt, caption)
        picture = picture.encoded() if hasattr(picture.image, "savefig") else picture
        mime = "image/svg+xml" if picture.kind == "svg" else "image/png"
        source = f"data:{mime};base64,{base64.b64encode(picture.image).decode()}"
        image = f'<img src="{source}" alt="{html.escape(alt or picture.alt)}" width="{picture.width:.0f}">'
        broad = picture.width > BROAD
        names = f"picture{' broad wide' if broad else ''}{' plate' if picture.kind == 'png' else ''}"
        words = caption or picture.caption
        words = f"<figcaption>{_inline(words)}</figcaption>" if words else ""
        return self._add(f'<figure class="{names}">{_scroll(image, "figure") if broad else image}{words}</figure>')

    def add_animation(self, panels: Animation | Mapping[str, Any], **options: Any) -> "Page":
        """Motions side by side, played in step: an `Animation`, or what `animate` takes (`alt` is then required)."""
        animation = panels if isinstance(panels, Animation) else animate(panels, **options)
        self._plays = True
        return self._add(animation.html())

    def html(self) -> str:
        """The whole document."""
        blocks = list(self._blocks)
        if self._contents_at is not None:
            blocks[self._contents_at] = self._contents()
        body = "\n".join(blocks)
        player = files("kinema.report").joinpath("assets/player.js").read_text(encoding="utf-8") if self._plays else ""
        seal = base64.b64encode(hashlib.sha256(player.encode()).digest()).decode()
        policy = (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
            + (f"script-src 'sha256-{seal}'" if player else "script-src 'none'")
        )
        lede = f'<p class="lede">{_inline(self.lede)}</p>' if self.lede else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
            f'<title>{html.escape(self.title)}</title><link rel="icon" href="{_ICON}">'
            f'<style>{style.css()}</style></head><body><a class="skip" href="#main">Skip to content</a>'
            f'<header><div class="mark">{_MARK}Kinema</div><h1>{_inline(self.title)}</h1>{lede}</header>\n'
            f'<main id="main">{body}</main>\n<footer><p>{_inline(self.footer)}</p></footer>'
            + (f"<script>{player}</script>" if player else "")
            + "</body></html>\n"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page to `path`, or to `index.html` in it if it does not end in .html; returns the file."""
        path = Path(path)
        path = path if path.suffix.lower() in (".html", ".htm") else path / "index.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.html().encode())
        return path

    def _add(self, block: str) -> "Page":
        self._blocks.append(block)
        return self

    def _contents(self) -> str:
        items = [f'<li><a href="#{name}">{_inline(words)}</a>{badge}</li>' for name, words, badge in self._sections]
        return f'<ul class="contents">{"".join(items)}</ul>'


def _scroll(inside: str, what: str) -> str:
    # focusable, so that it can be scrolled by keyboard
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(what)}">{inside}</div>'


def _inline(words: str) -> str:
    """Escaped text with `code`, *emphasis* and links to web addresses and arXiv numbers."""
    code = re.split(r"`([^`]+)`", words)
    return "".join(f"<code>{html.escape(part)}</code>" if i % 2 else _stressed(part) for i, part in enumerate(code))


def _stressed(words: str) -> str:
    parts = re.split(r"(?<!\w)\*(?=\S)([^*]+)(?<=\S)\*(?!\w)", words)
    return "".join(f"<em>{_linked(part)}</em>" if i % 2 else _linked(part) for i, part in enumerate(parts))


def _linked(words: str) -> str:
    pattern = r"(https?://[^\s<>\"'`]*[^\s<>\"'`.,;:!?)\]])|\barXiv[: ](\d{4}\.\d{4,5})\b"
    out, end = [], 0
    for found in re.finditer(pattern, words):
        address = found[1] or f"https://arxiv.org/abs/{found[2]}"
        out += [
            html.escape(words[end : found.start()]),
            f'<a href="{html.escape(address)}">{html.escape(found[0])}</a>',
        ]
        end = found.end()
    return "".join([*out, html.escape(words[end:])])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", ", ".join(_shown(one) for one in value)))
        else:
            rows.append((f"{prefix}{name}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    simple: Cell = value if isinstance(value, str | int | float | bool) or value is None else str(value)
    return text(simple)
