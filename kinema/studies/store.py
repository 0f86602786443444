"""The folder of evidence: `<slug>.json` with its pictures beside it, at most 150 KB of them a study.

JAX is not needed to read it.
"""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import InputError, StoreCorrupt
from kinema.studies.evidence import FORMAT, Evidence

if TYPE_CHECKING:
    from kinema.report.picture import Picture

PICTURE_LIMIT = 150_000  # bytes of all pictures of one study
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def save_evidence(evidence: Evidence, folder: str | os.PathLike = "evidence") -> Path:
    """Keep evidence in `folder`, in place of what was there for its slug; returns the JSON file.

    Every file is written whole under another name and then renamed. The JSON holds the pictures' checksums and comes
    last, so a run that dies in between is noticed when it is read.

    Raises:
        InputError: the smoke preset (too small to be evidence), no slug, settings that are not plain data, or pictures
            that do not fit 150 KB together.
    """
    if evidence.preset == "smoke":
        raise InputError("the smoke preset only shows that a study runs; it is not kept as evidence")
    from kinema.report.files import write_whole

    slug, folder = _name("slug", evidence.slug), Path(folder)
    pictures = _encoded(evidence)
    data = evidence.to_json()
    files = {f"{slug}.{_name('picture', p.name)}.{p.kind}": p.image for p in pictures}
    files |= {f"{slug}.{_name('animation', a.name)}.json": _dump(a.data) for a in evidence.animations}
    if sum(map(len, files.values())) > PICTURE_LIMIT:
        sizes = ", ".join(f"{name} {len(content)}" for name, content in files.items())
        raise InputError(f"pictures of {slug!r} have more than {PICTURE_LIMIT} bytes together: {sizes}")
    drawn = [*pictures, *evidence.animations]
    data["pictures"] = [
        {"name": one.name, "file": file, "sha256": _sha(content), "alt": one.alt, "caption": one.caption}
        for one, (file, content) in zip(drawn, files.items())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    path = folder / f"{slug}.json"
    write_whole(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    for old in folder.glob(f"{slug}.*.*"):
        if old.name not in files and old.suffix in (".svg", ".png", ".json"):
            old.unlink()
    return path


def load_evidence(slug: str, folder: str | os.PathLike = "evidence", *, pictures: bool = True) -> Evidence:
    """Evidence kept for a slug; where there is none, empty evidence, whose verdict is "not run".

    Raises:
        StoreCorrupt: the JSON is damaged, or a picture is missing or not the one that was saved.
    """
    path = Path(folder) / f"{_name('slug', slug)}.json"
    if not path.exists():
        return Evidence(slug=slug)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["slug"] != slug:
            raise StoreCorrupt(f"{path} holds format {data['format']} of {data['slug']!r}, not {FORMAT} of {slug!r}")
        evidence = Evidence.from_json(data)
        return replace(evidence, **_drawn(path, data["pictures"])) if pictures else evidence
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(f"{path} is not evidence: {type(error).__name__} {error}") from error


def _drawn(path: Path, entries: list[dict[str, str]]) -> dict[str, list]:
    from kinema.report.animation import Animation
    from kinema.report.picture import Picture

    figures, animations = [], []
    for entry in entries:
        name, alt, caption = entry["name"], entry["alt"], entry["caption"]
        suffix = Path(entry["file"]).suffix
        if suffix not in (".svg", ".png", ".json"):
            raise StoreCorrupt(f"{path} names a picture of unknown kind {entry['file']!r}")
        # the name is made anew, so that a damaged file cannot point elsewhere
        file = path.with_name(f"{path.stem}.{_name('picture', name)}{suffix}")
        content = file.read_bytes() if file.exists() else b""
        if _sha(content) != entry["sha256"]:
            raise StoreCorrupt(f"{file} is {'not the picture that was saved' if content else 'missing'}")
        if suffix == ".json":
            animations.append(Animation(name, json.loads(content), alt, caption))
        else:
            figures.append(Picture(name, content, alt, caption))
    return {"figures": figures, "animations": animations}


def _encoded(evidence: Evidence) -> list["Picture"]:
    """Pictures that fit together: small ones as they are, larger ones each in an equal share of the room left."""
    room = PICTURE_LIMIT - sum(len(_dump(animation.data)) for animation in evidence.animations)
    pictures = [picture.encoded(PICTURE_LIMIT) for picture in evidence.figures]
    by_size = sorted(range(len(pictures)), key=lambda index: len(pictures[index].image))
    for place, index in enumerate(by_size):
        share = max(room // (len(pictures) - place), 0)
        if len(pictures[index].image) > share:
            pictures[index] = evidence.figures[index].encoded(share)
        room -= len(pictures[index].image)
    return pictures


def _name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 80:
        raise InputError(f"{what} must be of lower-case letters, digits and single hyphens, got {name!r}")
    return name


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
