"""MkDocs hook: the gallery is made from the evidence kept in the repository, so nothing is typed twice; entries of the
navigation with a * are the pages that exist."""

import shutil
from pathlib import Path

from kinema.studies import catalog, load_evidence, metric_table

ROOT = Path(__file__).parent.parent
MARK = "<!-- evidence -->"


def on_config(config):
    docs = Path(config["docs_dir"])
    nav = []
    for entry in config["nav"]:
        ((title, pages),) = entry.items()
        if isinstance(pages, str) and "*" in pages:
            pages = [str(page.relative_to(docs)) for page in sorted(docs.glob(pages))]
        nav += [{title: pages}] if pages else []
    config["nav"] = nav


def on_page_markdown(markdown, page, config, files):
    if MARK not in markdown:
        return markdown
    sections = [section(slug, about) for slug, about in catalog().items()]
    return markdown.replace(MARK, "\n\n".join(sections))


def on_post_build(config):
    target = Path(config["site_dir"]) / "evidence"
    target.mkdir(exist_ok=True)
    for file in (ROOT / "evidence").glob("*.*.*"):
        shutil.copy(file, target / file.name)


def section(slug, about):
    """One study: claim, verdict, figures, metrics."""
    evidence = load_evidence(slug, ROOT / "evidence")
    parts = [f"## {about.title}", f"{about.claim}", f"*{about.paper}* · **{evidence.verdict}**: {evidence.why}"]
    pictures = [
        f'<img src="../evidence/{slug}.{one.name}.{one.kind}" alt="{one.alt}" width="420">' for one in evidence.figures
    ]
    parts += ["\n".join(pictures)] if pictures else []
    if evidence.metrics:
        parts.append(metric_table(tuple(evidence.metrics)).markdown())
    return "\n\n".join(parts)
