import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kinema.errors import InputError
from kinema.report import Page
from kinema.report.charts import house
from kinema.tables import Table

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Reader(HTMLParser):
    """Every element and its attributes; notes elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID and tag not in ("circle", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("circle", "path"):
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def figure():
    with house() as (fig, axes):
        axes.plot([0, 1])
    return fig


def full(words="words"):
    page = Page(words, lede=words, footer=words).add_contents()
    page.add_heading(words).add_verdict("falls short", words).add_text(f"{words}\n\n`{words}` *{words}*")
    page.add_settings({words: words, "nested": {words: [1, words]}}, title=words)
    page.add_table(Table(words, (words, "b"), [(words, 1.0)], words))
    page.add_figure(figure(), alt=words, caption=words)
    page.add_animation({words: np.zeros((3, 1, 2))}, alt=words, caption=words)
    return page


def test_everything_given_is_escaped():
    text = full(EVIL).html()
    read = Reader(text)
    assert not read.wrong and not read.open
    assert len(read.all("script")) == 2  # the player and its data
    assert all("onerror" not in attrs and attrs.get("src", "data:").startswith("data:") for _, attrs in read.found)
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;/script&gt;|u003cscript>alert\(1\)", "", text)


def test_nothing_is_fetched():
    read = Reader(full().html())
    for tag, attrs in read.found:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        if tag != "a":
            assert attrs.get("src", attrs.get("href", "data:")).startswith(("data:", "#")), (tag, attrs)


def test_policy_admits_the_player_and_nothing_else():
    text = full().html()
    policy = next(attrs["content"] for attrs in Reader(text).all("meta") if attrs.get("http-equiv"))
    player = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    seal = base64.b64encode(hashlib.sha256(player.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{seal}'" in policy
    assert "; script-src 'none'\">" in Page("still").html()


def test_pictures_have_alt_text_and_captions():
    read = Reader(full("a line").html())
    (image,) = read.all("img")
    assert image["alt"] == "a line" and image["src"].startswith("data:image/svg+xml;base64,")
    assert len(read.all("figcaption")) == 2
    with pytest.raises(InputError, match="needs alt text"):
        Page("t").add_figure(figure())


def test_text_becomes_paragraphs_links_code_and_emphasis():
    text = (
        Page("t")
        .add_text("One *two*\nthree 2 * 3 * 4.\n\n`a*b*c` arXiv 2411.02385, https://kinema.dev/a?b=1&c.")
        .html()
    )
    assert "<p>One <em>two</em> three 2 * 3 * 4.</p><p><code>a*b*c</code>" in text
    assert '<a href="https://arxiv.org/abs/2411.02385">arXiv 2411.02385</a>' in text
    assert '<a href="https://kinema.dev/a?b=1&amp;c">https://kinema.dev/a?b=1&amp;c</a>.' in text
    assert "javascript:" not in Page("t").add_text("javascript:alert(1)").html().replace("<p>javascript:alert(1)", "")


def test_contents_list_sections_with_their_verdicts():
    page = (
        Page("t").add_contents().add_heading("GHVB").add_verdict("reproduced").add_heading("GHVB").add_heading("x", 3)
    )
    text = page.html()
    assert '<li><a href="#ghvb">GHVB</a><span class="badge reproduced">reproduced</span></li>' in text
    assert '<li><a href="#ghvb~2">GHVB</a></li></ul>' in text
    assert len(set(re.findall(r'id="([^"]+)"', text))) == len(re.findall(r' id="', text))


def test_tables_scroll_in_a_box_that_can_be_focused():
    wide = Table("t", [f"c{i}" for i in range(9)], [range(9)])
    text = Page("t").add_table(wide).html()
    assert '<div class="table wide"><div class="scroll" role="region" tabindex="0" aria-label="t"><table>' in text


def test_save_writes_one_whole_file(tmp_path):
    page = full()
    assert page.save(tmp_path / "a" / "report.html").read_text(encoding="utf-8") == page.html()
    assert page.save(tmp_path / "folder") == tmp_path / "folder" / "index.html"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["report.html"]
    broken = Page("t")
    broken.html = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.save(tmp_path / "a" / "report.html")
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == page.html()


def test_bad_words_are_refused():
    with pytest.raises(InputError, match="needs a title"):
        Page(" ")
    with pytest.raises(InputError, match="level must be 2 or 3"):
        Page("t").add_heading("x", 1)
    with pytest.raises(InputError, match="got 'great'"):
        Page("t").add_verdict("great")
