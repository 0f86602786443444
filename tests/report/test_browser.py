"""Pages in a real browser: nothing fails, nothing overflows, the player obeys."""

import shutil

import numpy as np
import pytest
from browser import MISSING, Browser
from matplotlib.image import imread

from kinema.report import Page, charts, style
from kinema.tables import Spread, Table

FRAMES = 16


def bouncing(samples, seed):
    """Two balls that bounce off the walls of a unit box and ignore each other."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(0.12, 0.88, (samples, 1, 2, 2)), rng.normal(size=(samples, 1, 2, 2))
    straight = start + speed * 0.05 * np.arange(FRAMES)[None, :, None, None] - 0.12
    return 0.12 + 0.76 * np.abs((straight / 0.76 + 1) % 2 - 1)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    nfe = np.array([4, 8, 16, 32])
    page = Page("What a generator learns of the law of two elastic balls", lede="<b>Exact</b> truth & its oracle.")
    page.add_contents().add_heading("Motion").add_verdict("falls short", "distance is 0.0081, target ≤ 0.006.")
    true, other = bouncing(4, 0), bouncing(4, 1)
    page.add_animation(
        {"True": true, "Generated": other, "Restored": true},
        ghosts={"Restored": true + 0.02 * rng.normal(size=true.shape)},
        series={"Generated": {"energy": 1 + 0.1 * rng.normal(size=(4, FRAMES))}},
        radius=0.12,
        box=(1, 1),
        dt=0.05,
        alt="two balls in a box",
        caption="A ring marks an overlap.",
    )
    page.add_heading("Numbers").add_verdict("reproduced")
    laws = ("replay", "energy", "momentum", "kinematic", "wall", "ball", "speed", "hits")
    rows = [(name, *(Spread(*rng.uniform(0.01, 0.4, 2)) for _ in laws)) for name in ("true", "generated", "steered")]
    page.add_table(Table("Law errors", ("motion", *laws), rows, "± over 3 seeds."))
    page.add_figure(
        charts.law_bars({n: dict.fromkeys(laws, rng.random(3)) for n in "abc"}), alt="bars", caption="Bars."
    )
    page.add_figure(charts.error_against_nfe({"Euler": (nfe, 1 / nfe), "Heun": (nfe, 1 / nfe**2)}), alt="curves")
    page.add_figure(charts.scatter_rows({name: rng.normal(size=(900, 2)) for name in "abc"}), alt="clouds")
    with charts.house() as (figure, axes):
        axes.imshow(rng.normal(size=(600, 600)), interpolation="nearest")
        axes.grid(False)
    page.add_figure(figure, alt="noise, too rich for SVG")
    page.add_text("averylongwordwithoutanyplacetobreak" * 5 + " `" + "code" * 40 + "`")
    page.add_settings({"a long name of a setting": "x" * 90, "versions": {"jax": "0.10.1"}}, unfolded=True)
    return page.save(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser():
    assert shutil.which("chromium"), MISSING
    browser = Browser()
    yield browser
    browser.close()


def ready(browser):
    browser.wait("document.querySelector('.player').dataset.ready === 'yes'")
    return browser


def state(browser):
    return browser.run("({...document.querySelector('.player').dataset})")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_fails_and_nothing_overflows(browser, page, width, dark, tmp_path):
    ready(browser.open(page, width=width, dark=dark))
    sizes = browser.run("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.clientWidth])")
    assert browser.run("document.images[3].src").startswith("data:image/png")
    assert len(sizes) == 4 and all(done and w > 0 and h > 0 and shown > 0 for done, w, h, shown in sizes)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.querySelector('.table .scroll').scrollWidth") >= browser.run(
        "document.querySelector('.table .scroll').clientWidth"
    )
    small = browser.run(
        "[...document.querySelectorAll('p,td,th,dd,dt,figcaption,label,output,button')]"
        ".filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 13).map(e => e.outerHTML)"
    )
    assert small == []
    assert browser.problems == []
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_scripts_of_others_do_not_run(browser, page, tmp_path):
    spoiled = tmp_path / "spoiled.html"
    evil = "<script>document.title = 'evil'</script><img src=x onerror=\"document.title = 'evil'\">"
    spoiled.write_text(page.read_text(encoding="utf-8").replace("</main>", evil + "</main>"), encoding="utf-8")
    ready(browser.open(spoiled))
    assert browser.run("document.title") != "evil"
    assert any("Content Security Policy" in problem for problem in browser.problems)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_charts_follow_light_and_dark(browser, page, dark, tmp_path):
    ready(browser.open(page, dark=dark)).screenshot(tmp_path / "chart.png", of="document.images[1]")
    picture = imread(tmp_path / "chart.png")[..., :3]

    def share(colour):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.mean(np.abs(picture - rgb).max(-1) < 0.02)

    mine, other = (style.DARK, style.LIGHT)[:: 1 if dark else -1]
    lines, strange = (style.SERIES_DARK, style.SERIES_LIGHT)[:: 1 if dark else -1]
    assert share(mine["paper"]) > 0.8 and share(mine["line"]) > 1e-3 and share(lines[0]) > 1e-3
    assert share(other["line"]) < 5e-4 and share(strange[0]) < 5e-4


def test_player_plays_pauses_and_seeks(browser, page):
    ready(browser.open(page))
    browser.run("document.querySelector('.panels').scrollIntoView({block: 'center', behavior: 'instant'})")
    browser.wait("document.querySelector('.player').dataset.playing === 'true'")
    browser.wait("Number(document.querySelector('.player').dataset.frame) > 1")
    browser.run("document.querySelector('.play').click()")
    assert state(browser)["playing"] == "false"
    stopped = state(browser)["frame"]
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert state(browser)["frame"] == stopped
    browser.run("(r => { r.value = 7; r.dispatchEvent(new Event('input')); })(document.querySelector('.player input'))")
    assert state(browser)["frame"] == "7.00"
    assert (
        browser.run("document.querySelector('.player input').getAttribute('aria-valuetext')")
        == "frame 8 of 16, time 0.35"
    )
    assert browser.problems == []


def test_player_obeys_the_keyboard(browser, page):
    ready(browser.open(page, still=True))
    browser.run("document.querySelector('.player input').focus()")
    for key, frame in [
        ("ArrowRight", "1.00"),
        ("ArrowRight", "2.00"),
        ("ArrowLeft", "1.00"),
        ("End", "15.00"),
        ("Home", "0.00"),
    ]:
        browser.press(key)
        assert state(browser)["frame"] == frame, key
    browser.press(" ")
    browser.wait("document.querySelector('.player').dataset.playing === 'true'")
    browser.press(" ")
    assert state(browser)["playing"] == "false"
    for name, sample in [(".next", "1"), (".back", "0"), (".back", "3")]:
        browser.run(f"document.querySelector('{name}').focus()")
        browser.press("Enter")
        assert state(browser)["sample"] == sample


def test_readers_who_like_no_motion_see_whole_paths(browser, page):
    ready(browser.open(page, still=True))
    browser.run("document.querySelector('.panels').scrollIntoView({block: 'center', behavior: 'instant'})")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert state(browser)["playing"] == "false" and state(browser)["frame"] == "0.00"
    still = painted(browser)
    ready(browser.open(page, still=False))
    browser.run("document.querySelector('.play').click(); document.querySelector('.play').click()")
    browser.run("(r => { r.value = 0; r.dispatchEvent(new Event('input')); })(document.querySelector('.player input'))")
    assert still > painted(browser) > 0


def painted(browser):
    """Pixels of the first panel that are not empty."""
    return browser.run(
        "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length)"
        "(document.querySelector('.player canvas'))"
    )
