"""The dashboard in a real browser, served by the real process from a run folder that the test lets happen."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from support.seen_run import SeenRun
from support.web import PATIENCE_S, served

keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed (extra dev)").Keys
pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
STAYS_S = 3600.0
"""A device that was last heard so far in the future is never gone."""

LONG = "adevicewhosenameisaslongasnamesmaybeandhasnoplacetobreak" * 3

CONTRASTS = """
const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
function ground(node) {
  for (let at = node; at !== null; at = at.parentElement) {
    const color = parts(getComputedStyle(at).backgroundColor);
    if (color[3] === undefined || color[3] === 1) return color;
    if (color[3] !== 0) throw new Error("half transparent");
  }
  return parts(getComputedStyle(document.documentElement).backgroundColor);
}
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let texts = 0;
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const seen = node.checkVisibility({ checkOpacity: true }) && !node.closest(".unseen, noscript");
  if (walker.currentNode.textContent.trim() === "" || !seen) continue;
  const style = getComputedStyle(node);
  const color = node instanceof SVGElement ? style.fill : style.color;
  const [one, other] = [luminance(parts(color)), luminance(ground(node))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  texts += 1;
  if (ratio < 4.5) poor.push(`${walker.currentNode.textContent.trim()}: ${color} ${ratio.toFixed(2)}`);
}
return [texts, poor];
"""


OVERFLOWS = """
return [...document.querySelectorAll("main *, header *, footer *")]
  .filter((node) => node.checkVisibility() && !node.closest(".unseen, .table-frame, svg"))
  .filter((node) => node.getBoundingClientRect().right > window.innerWidth + 0.5)
  .map((node) => node.outerHTML.slice(0, 80));
"""


def _begin(folder: Path) -> SeenRun:
    """A run in its second epoch with unlike devices, two of them with names that are trouble."""
    run = SeenRun(folder, now_s=time.time(), cuts=(2, 4))
    for name, samples, cut in (("pi-1", 96, 4), ("pi-10", 48, 2), (HOSTILE, 16, 4)):
        run.hello(name, cut=cut)
        run.samples(name, samples, cut=cut)
        run.heard(name, bytes_in=samples * 60_000)
    run.hello(LONG, now_s=run.now_s - 100)
    run.finished("pi-1")
    run.heard("pi-1", rejected=2)
    run.heard("pi-10", activity=f"paused: {HOSTILE}", now_s=run.now_s + STAYS_S)
    run.heard(HOSTILE, activity="w" * 300, now_s=run.now_s + STAYS_S)
    run.steps(10, epoch=1, until_s=run.now_s - 20)
    run.validation(epoch=1, accuracy=0.8, loss=0.5)
    run.steps(10, epoch=2)
    return run


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page about a run in which nothing happens."""
    run = _begin(tmp_path_factory.mktemp("still"))
    with run.worked_on(), served(run.path, run.path.parent / "log") as (url, _):
        yield url
    run.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SeenRun]:
    """A run that a test lets go on."""
    run = _begin(tmp_path)
    with run.worked_on():
        yield run
    run.close()


def test_the_page_says_what_the_run_does_and_looks_like_it(browser, url, tmp_path):
    browser.open(url)
    assert browser.text("state-title") == "Training"
    assert "Epoch 2 of 3, step 20" in browser.text("state-detail")
    assert browser.text("link-text") == "live"
    assert browser.text("devices-count") == "4 devices"
    assert browser.text("store-text").startswith("Store: ")
    assert browser.text("progress-text").startswith("66.7 %, 320 of 480 trained (160 samples ")
    assert browser.driver.title.startswith("67 % Training")
    browser.screenshot(tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000


def test_what_happens_is_seen_without_a_reload(browser, run, tmp_path):
    with served(run.path, tmp_path / "log") as (url, _):
        browser.open(url)
        run.hello("pi-11", now_s=time.time())
        run.samples("pi-11", 5)
        run.steps(1, epoch=2, until_s=time.time())
        browser.until("return document.getElementById('devices-count').textContent === '5 devices'", "a new device")
        browser.until("return document.getElementById('state-detail').textContent.includes('step 21')", "a new step")
        assert "pi-11" in browser.column("name")
        run.done()
        browser.until("return document.getElementById('state-title').textContent === 'Done'", "the end")
        assert browser.run("return document.getElementById('announcer').ariaLive") == "polite"
        assert browser.text("announcer").startswith("Done. Every sample was trained on 3 times")
        assert browser.run("return document.getElementById('progress').ariaValueNow") == "100.0"


def test_text_of_a_device_is_text_and_never_markup(browser, url):
    browser.open(url)
    assert HOSTILE in browser.column("name")
    assert f"paused: {HOSTILE}" in browser.column("reason")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("return window.hurt") is None
    with pytest.raises(Exception, match="TrustedHTML"):
        browser.run("document.body.innerHTML = arguments[0]", HOSTILE)
    assert any("TrustedHTML" in complaint for complaint in browser.complaints())


def test_the_table_is_sorted_by_keyboard_and_numbers_in_names_count_as_numbers(browser, url):
    browser.open(url)
    browser.run("document.getElementById('devices-filter').focus()")
    browser.press(keys.TAB)
    assert browser.run("return document.activeElement.textContent") == "Device"
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(keys.ENTER)
    assert browser.column("name") == [HOSTILE, LONG, "pi-1", "pi-10"]
    browser.press(keys.SPACE)
    assert browser.column("name") == ["pi-10", "pi-1", LONG, HOSTILE]
    heads = "return [...document.querySelectorAll('#devices-head th')].map((head) => head.ariaSort)"
    assert browser.run(heads) == ["descending", *["none"] * 8]
    browser.press(keys.TAB, keys.TAB, keys.TAB, keys.ENTER)
    assert browser.column("samples") == ["96", "48", "16", "0"]
    assert browser.run("return document.activeElement.textContent") == "Samples"


def test_the_state_of_a_device_is_a_word_and_those_in_need_come_first(browser, url):
    browser.open(url)
    assert browser.column("status") == ["gone", "paused", "paused", "finished"]


def test_a_curve_is_read_with_the_keyboard(browser, url):
    browser.open(url)
    browser.run("document.querySelector('#loss svg.plot').focus()")
    browser.press(keys.HOME)
    reading = "return document.querySelector('#loss .readout').textContent"
    assert str(browser.run(reading)).startswith("Step 1: training, running mean ")
    browser.press(keys.END, *[keys.ARROW_LEFT] * 10)
    assert str(browser.run(reading)).startswith("Step 10: training, running mean ")
    assert str(browser.run(reading)).endswith("held out 0.5")
    assert browser.run("return document.querySelector('#loss svg.plot').ariaValueText") == browser.run(reading)


def test_everything_that_takes_the_focus_has_a_name(browser, url):
    from selenium.webdriver.common.by import By

    browser.open(url)
    found = browser.driver.find_elements(By.CSS_SELECTOR, "a, button, input, summary, [tabindex='0']")
    shown = [element for element in found if element.is_displayed()]
    assert len(shown) >= 15
    assert [element.tag_name for element in shown if element.accessible_name.strip() == ""] == []
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


def test_the_page_never_scrolls_sideways(browser, url):
    for width in (320, 360, 600, 768, 1280):
        browser.open(url, width=width, height=740)
        assert LONG in browser.column("name")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run(OVERFLOWS) == [], width


def test_all_text_has_contrast_enough_in_light_and_in_dark(browser, url):
    for scheme, width in product(("light", "dark"), (1280, 360)):
        browser.open(url, width=width, prefers_color_scheme=scheme)
        texts, poor = browser.run(CONTRASTS)
        assert texts > 60
        assert poor == [], scheme
        ground = str(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


def test_who_wants_no_motion_gets_none(browser, url):
    browser.open(url)
    duration = "return getComputedStyle(document.querySelector('#progress > span')).transitionDuration"
    assert browser.run(duration) == "0.4s"
    browser.open(url, prefers_reduced_motion="reduce")
    assert browser.run(duration) == "0s"


def test_a_thousand_devices_are_shown_page_by_page_and_found_by_name(browser, tmp_path):
    run = SeenRun(tmp_path, now_s=time.time())
    with run.store.commit():
        for number in range(1000):
            run.hello(f"phone-{number}")
    with served(run.path, tmp_path / "log") as (url, _):
        browser.open(url)
        assert browser.text("devices-count") == "1,000 devices"
        assert browser.column("name") == [f"phone-{number}" for number in range(25)]
        browser.run("document.getElementById('pages-on').focus()")
        browser.press(keys.ENTER)
        assert browser.column("name")[0] == "phone-25"
        assert browser.text("pages-where") == "26 to 50 of 1,000"
        browser.run("document.getElementById('devices-filter').focus()")
        browser.press("phone-777")
        assert browser.column("name") == ["phone-777"]
        assert browser.text("devices-count") == "1 of 1,000 devices"
        browser.press("x")
        assert browser.text("devices-none") == "No device matches the filter."
    run.close()


def test_a_page_that_is_left_holds_no_connection_and_one_that_is_come_back_to_lives_again(browser, run, tmp_path):
    """Browsers keep a page that was left, and allow only six connections to a server: a few reloads would use them up."""
    with served(run.path, tmp_path / "log") as (url, command):
        server = psutil.Process(command.process.pid)
        browser.open(url)
        browser.run("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
        command.wait_until(lambda: _established(server) == 0, "end of the connection", timeout_s=PATIENCE_S)
        run.hello("pi-13", now_s=time.time())
        browser.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        browser.until("return document.getElementById('devices-count').textContent === '5 devices'", "the new state")
        assert browser.text("link-text") == "live"


def _established(process: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections(kind="tcp"))


def test_a_server_that_is_gone_is_said_with_the_time_and_its_return_is_noticed(browser, run, tmp_path):
    with served(run.path, tmp_path / "log") as (url, command):
        browser.open(url)
        command.kill()
        browser.until("return document.getElementById('link').dataset.state === 'lost'", "the loss is noticed")
    said = browser.text("link-text")
    assert re.fullmatch(r"disconnected since \d\d:\d\d:\d\d, trying again", said)
    assert browser.text("announcer") == said
    assert browser.driver.title.startswith("(disconnected) ")
    run.hello("pi-12", now_s=time.time())
    with served(run.path, tmp_path / "log", bind=urlsplit(url).netloc):
        browser.until("return document.getElementById('link').dataset.state === 'live'", "the return is noticed")
        browser.until("return document.getElementById('devices-count').textContent === '5 devices'", "the new state")
        assert all("ERR_" in complaint for complaint in browser.complaints())


def test_a_run_that_is_stopped_with_its_dashboard_is_shown_as_stopped(browser, tmp_path):
    run = SeenRun(tmp_path, now_s=time.time(), dashboard="127.0.0.1:0", expect_devices=1)
    command = [sys.executable, "-m", "sf_server.seeing.process", "--run", str(run.path)]
    with (
        run.worked_on(),
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        found = re.search(r"http://[^/]+/", process.stderr.readline())
        assert found is not None
        browser.open(found[0])
        assert browser.text("state-title") == "Waiting for samples"
        assert "0 of 256 samples for the next steps are here; 0 of 1 device have" in browser.text("state-detail")
        process.send_signal(signal.SIGTERM)
        browser.until("return document.getElementById('state-title').textContent === 'Stopped'", "the last word")
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
        browser.until("return document.getElementById('link-text').textContent.startsWith('ended at ')", "who left")
        assert "--resume" in browser.text("state-detail")
    run.close()
    browser.driver.get("about:blank")
    assert all("ERR_" in complaint for complaint in browser.complaints())
