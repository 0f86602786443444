"""Write the table of evidence into the README: `python docs/readme.py`."""

from pathlib import Path

from kinema.studies import markdown_table

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"


def with_table(readme: str) -> str:
    """The README with the table that the kept evidence gives."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{markdown_table(ROOT / 'evidence').strip()}\n{END}{after}"


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(with_table(file.read_text()))
