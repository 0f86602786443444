"""Docstrings as Markdown: sections as lists, doctests and equations as code, the rest as prose."""

import re

SECTION = re.compile(r"(Args|Example|Examples|Raises|Reference|Returns):\s*(.*)")
SPAN = re.compile(r"(`+[^`]+`+)")


def code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"


def prose(docstring: str, links: dict[str, str]) -> str:
    """Markdown of a cleaned docstring; `links` {name: address} are put on code spans that are a name."""
    parts, lines = [], docstring.splitlines()
    while lines:
        if not lines[0].strip():
            del lines[0]
            continue
        section = SECTION.fullmatch(lines[0])
        if section and not section[2]:
            parts.append(block(section[1], take(lines, indented), links))
        elif lines[0].startswith(">>>"):
            parts.append(code("\n".join(take(lines, str.strip)), "pycon"))
        elif lines[0].startswith("    "):
            parts.append(code("\n".join(dedent(take(lines, indented))), "text"))
        else:
            parts.append(paragraph(take(lines, str.strip), links))
    return "\n\n".join(parts)


def take(lines: list[str], belongs) -> list[str]:
    """The first line and those after it that belong with it, taken off `lines`."""
    count = next((i for i, line in enumerate(lines) if i and not belongs(line)), len(lines))
    taken = lines[:count]
    del lines[:count]
    while taken and not taken[-1].strip():
        taken.pop()
    return taken


def indented(line: str) -> bool:
    return not line.strip() or line.startswith("    ")


def dedent(lines: list[str]) -> list[str]:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[margin:] for line in lines]


def block(title: str, lines: list[str], links: dict[str, str]) -> str:
    """A section whose body is indented under its title."""
    body = dedent(lines[1:])
    if title.startswith("Example"):
        return f"**{title}**\n\n{code(chr(10).join(body), 'pycon')}"
    items: list[str] = []
    for line in body:
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif line.strip():
            items.append(line.strip())
    return f"**{title}**\n\n" + "\n".join(f"- {item(one, links)}" for one in items)


def item(line: str, links: dict[str, str]) -> str:
    """`name: what it is`, its names as code."""
    names, colon, rest = line.partition(": ")
    if not colon or not re.fullmatch(r"[\w*., |]+", names):
        return inline(line, links)
    return ", ".join(inline(f"`{name}`", links) for name in names.split(", ")) + f": {inline(rest, links)}"


def paragraph(lines: list[str], links: dict[str, str]) -> str:
    """Prose, or prose that leads to a list."""
    for i, line in enumerate(lines):
        if i and line.startswith("- ") and lines[i - 1].rstrip().endswith(":"):
            return f"{paragraph(lines[:i], links)}\n\n{paragraph(lines[i:], links)}"
    reference = SECTION.fullmatch(lines[0])
    if reference:
        lines = [f"*{reference[1]}:* {inline(reference[2], links)}", *(inline(line, links) for line in lines[1:])]
        return "\n".join(lines)
    return inline("\n".join(lines), links)


def inline(text: str, links: dict[str, str]) -> str:
    """Text in which only code spans and *emphasis* are Markdown."""
    parts = SPAN.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            address = links.get(part.strip("`"))
            parts[i] = f"[{part}]({address})" if address else part
        else:
            parts[i] = part.replace("&", "&amp;").replace("<", "&lt;").replace("**", r"\*\*").replace("[", r"\[")
    return "".join(parts)
