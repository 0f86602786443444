"""Every code block of the documentation and the README runs, in order, a page in a folder of its own.

Sizes are made small first: what a block does is kept, how much of it is not. `make` lines are CI's own business.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import forget_where_many
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/methods/*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)
SMALLER = [
    (r"\b(4096|1024|512)\b", "48"),
    (r"\b(1350|100)\b(?=\D*$|\))", "4"),
    (r"(steps=)\d{2,}", r"\g<1>4"),
    (r"-n (\d{3,})", "-n 32"),
    (r"--steps (1350)", "--steps 4"),
]


def smaller(line: str) -> str:
    """The line with counts of samples and training steps cut down."""
    for pattern, small in SMALLER:
        line = re.sub(pattern, small, line)
    if line.startswith("kinema learn") and "--steps" not in line:
        line += " --steps 4"
    return line


def run_shell(block: str):
    from kinema.cli import app

    for line in block.strip().splitlines():
        words = shlex.split(smaller(line), comments=True)
        if not words or words[0] == "make":
            continue
        assert words[0] == "kinema", f"only kinema and make are run in the docs, got {line!r}"
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch):
    forget_where_many()
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, block in BLOCK.findall(page.read_text()):
        if kind == "bash":
            run_shell(block)
        else:
            code = "\n".join(map(smaller, block.splitlines()))
            exec(compile(code, f"{page.name}", "exec"), names)


def test_the_readme_begins_as_the_quick_start():
    """The README's first screen is the docs' first page, up to the links that follow it."""
    start = (ROOT / "docs" / "index.md").read_text().split("## Where to go")[0]
    plain = start.replace("(your-data.md)", "(docs/your-data.md)")
    assert (ROOT / "README.md").read_text().startswith(plain.rstrip())


def test_the_readme_shows_the_kept_evidence():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text()
    assert module.with_table(text) == text, "run `python docs/readme.py`"
