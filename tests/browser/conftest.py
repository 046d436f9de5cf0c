"""A real headless Chromium, driven through WebDriver. Nothing is downloaded: without one the tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium import webdriver

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-device-scale-factor=1", "--lang=en-US",
)  # fmt: skip


class Browser:
    """The browser, and what the tests ask it to look like."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1280, height: int = 900, **media: str) -> None:
        """Open a page as wide as asked for, with media features (`prefers_color_scheme="dark"`)."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)
        self.until("return !document.getElementById('main').hidden", "the page shows the run")

    def run(self, script: str, *arguments: object) -> object:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, what: str, *, timeout_s: float = 20.0) -> None:
        """Wait until a script in the page returns something true."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            WebDriverWait(self.driver, timeout_s, poll_frequency=0.05).until(lambda _: self.run(script))
        except TimeoutException:
            text = self.run("return document.body.innerText.slice(0, 2000)")
            raise AssertionError(f"not within {timeout_s} s: {what}\n{text}") from None

    def text(self, element_id: str) -> str:
        """The text of an element."""
        return str(self.run("return document.getElementById(arguments[0]).textContent", element_id))

    def press(self, *keys: str) -> None:
        """Keys, to whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def column(self, column: str) -> list[str]:
        """A column of the table of devices, as shown."""
        script = """
            const heads = [...document.getElementById("devices-head").children];
            const index = heads.findIndex((head) => head.dataset.column === arguments[0]);
            return [...document.getElementById("devices-rows").children].map((row) => row.children[index].textContent);
        """
        found = self.run(script, column)
        assert isinstance(found, list)
        return found

    def complaints(self) -> list[str]:
        """Errors and warnings in the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, path: Path) -> None:
        """The whole page as an image."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.innerWidth")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert self.driver.save_screenshot(str(path))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("chromium or chromedriver is not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    with webdriver.Chrome(service=service, options=options) as driver:
        driver.set_page_load_timeout(30)
        yield Browser(driver)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser; a test fails when the page complained about anything that was not expected."""
    chromium.complaints()
    yield chromium
    complaints = chromium.complaints()
    chromium.driver.get("about:blank")
    assert complaints == []
