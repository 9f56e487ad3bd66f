"""The page in a real browser, where there is one: Debian's chromium and chromium-driver."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import append, evaluated, samples, whole_run

from mosaickd.analysis.serve import Pages, Server
from mosaickd.report import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage")  # fmt: skip

if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium with its chromedriver on this machine", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start one for all tests, as that takes seconds."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    whole_run(root / "one")
    whole_run(root / "two", seed=1, status="failed", error="OutOfMemoryError: " + "long" * 200)
    for path in (root / "one", root):
        main([str(path), "--html"])
    return root


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def visible_pictures(browser: Any) -> list[str]:
    images = browser.find_elements("css selector", ".frames img")
    return [image.get_attribute("alt") for image in images if image.is_displayed()]


def drawn_charts(browser: Any) -> int:
    return browser.execute_script(
        "return [...document.querySelectorAll('[data-spec] svg')].filter("
        "svg => svg.querySelector('path[stroke], path[fill]') && svg.clientWidth > 100).length"
    )


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def until(happened: Callable[[], bool]) -> None:
    """Wait for the browser."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < 60, "nothing happened"
        time.sleep(0.05)


def requests(browser: Any) -> list[str]:
    """Return the addresses that the page asked for since the last look."""
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m for m in sent if not m["params"].get("documentURL", "").startswith("chrome:")]
    urls = [m["params"]["request"]["url"] for m in sent
            if m["method"] == "Network.requestWillBeSent"]  # fmt: skip
    return [url for url in urls if not url.startswith("data:")]


def test_charts_are_drawn_and_the_slider_moves_by_keyboard(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    requests(browser), complaints(browser)
    address = (folder / "one" / "report.html").as_uri()
    browser.get(address)
    charts = len(browser.find_elements("css selector", "[data-spec]"))
    assert charts > 5
    until(lambda: drawn_charts(browser) == charts)
    slider = find(browser, "input[type=range]")
    assert slider.accessible_name == "step"
    assert [words.split(";")[0][-7:] for words in visible_pictures(browser)] == ["step 30"]
    slider.send_keys(Keys.ARROW_LEFT)
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert find(browser, "output").text == "20"
    assert [words.split(";")[0][-7:] for words in visible_pictures(browser)] == ["step 20"]
    assert complaints(browser) == []
    assert requests(browser) == [address], "the file asks for nothing else"


@pytest.mark.parametrize("name", ["one/report.html", "report.html"])
def test_a_phone_never_scrolls_sideways_and_the_dark_is_dark(
    browser: Any, folder: Path, name: str
) -> None:
    complaints(browser)
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})  # fmt: skip
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})  # fmt: skip
        browser.get((folder / name).as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        charts = len(browser.find_elements("css selector", "[data-spec]"))
        until(lambda: drawn_charts(browser) == charts)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        colours = browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        assert colours == ["rgb(20, 24, 31)", "rgb(230, 233, 239)"]
        line = browser.execute_script(
            "return document.querySelector('[data-spec] svg path[stroke=\"#ff8a4c\"]') !== null"
        )
        assert line, "charts have the dark theme's colours"
        assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_served_page_follows_the_run_and_keeps_its_readers_place(
    browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    run = whole_run(tmp_path / "run", status="running")
    server = Server(0, Pages([run]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        complaints(browser)
        browser.set_window_size(1000, 600)
        browser.get(f"http://127.0.0.1:{server.port}/")
        find(browser, "input[type=range]").send_keys(Keys.ARROW_LEFT)
        find(browser, "details[id$=config] > summary").click()
        browser.execute_script("window.scrollTo(0, 400)")
        samples(run, [40])
        append(run, evaluated(40, 55.5))
        until(
            lambda: browser.execute_script(
                "return document.querySelector('main').textContent.includes('40 of 60')"
                " && document.querySelector('output')?.textContent === '20'"
                " && window.scrollY === 400"
            )
        )
        assert find(browser, "input[type=range]").get_attribute("max") == "3"
        assert find(browser, "details[id$=config]").get_attribute("open")
        until(lambda: "Kept up to date" in find(browser, "#live").text)
        assert [m for m in complaints(browser) if "favicon" not in m] == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    until(lambda: "doesn't answer" in find(browser, "#live").text)
