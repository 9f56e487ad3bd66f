"""The page in a real browser, where there is one: Debian's chromium and chromium-driver."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import append, evaluated, samples, whole_run

from mosaickd.report.__main__ import main
from mosaickd.report.page.serve import Pages, Server

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
    """One for all tests: to start it takes seconds."""
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


def seen(browser: Any) -> list[str]:
    """What is said of the pictures that can be seen."""
    every = browser.find_elements("css selector", "figure.grid img, .frame [role=img]")
    words = [e.get_attribute("alt") or e.get_attribute("aria-label") for e in every]
    return [w for e, w in zip(every, words, strict=True) if e.is_displayed()]


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def until(happened: Callable[[], bool]) -> None:
    """Wait for the browser."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < 60, "nothing happened"
        time.sleep(0.05)


def arrived(browser: Any, step: int) -> bool:
    """Whether the page shows that step's picture and accuracy; asked at once, as it may change."""
    return browser.execute_script(
        "const all = document.querySelector('main').innerHTML, step = arguments[0];"
        "return all.includes(`${step} of 60<`) && all.includes(` % at step ${step},`) "
        "&& document.querySelector('input').dataset.steps.endsWith(` ${step}`)", step)  # fmt: skip


def requests(browser: Any) -> list[str]:
    """Addresses that the page asked for since the last look."""
    import json

    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m for m in sent if not m["params"].get("documentURL", "").startswith("chrome:")]
    return [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]


def test_the_slider_moves_pictures_and_histograms_by_keyboard(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    requests(browser), complaints(browser)
    browser.get((folder / "one" / "report.html").as_uri())
    slider = find(browser, "input[type=range]")
    assert slider.is_displayed()
    assert slider.accessible_name == "step"
    first = seen(browser)
    assert [words.split(":")[0] for words in first] == [
        "Synthetic, step 30",
        "Bar chart at step 30",
        "Trained on, the same at each step",
    ]
    slider.send_keys(Keys.ARROW_LEFT)
    assert slider.get_attribute("aria-valuetext") == "step 20 of 30"
    assert find(browser, "output").text == "20"
    assert [words.split(":")[0] for words in seen(browser)][:2] == [
        "Synthetic, step 20", "Bar chart at step 20"]  # fmt: skip
    slider.send_keys(Keys.HOME)
    assert seen(browser)[0].startswith("Synthetic, step 10")
    assert seen(browser)[2] == first[2]
    mark = find(browser, ".chart .mark").get_attribute("d")
    slider.send_keys(Keys.END)
    assert find(browser, ".chart .mark").get_attribute("d") != mark, "curves show the step as well"
    widths = browser.execute_script(
        "return [...document.images].filter(i => i.offsetParent).map(i => i.naturalWidth)"
    )
    assert widths == [48, 48], "pictures are decoded"
    assert complaints(browser) == []
    asked = [address for address in requests(browser) if not address.startswith("data:")]
    assert asked == [(folder / "one" / "report.html").as_uri()], "the file asks for nothing else"


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
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360
        colours = browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        assert colours == ["rgb(20, 24, 31)", "rgb(230, 233, 239)"]
        assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_served_page_follows_the_run_and_keeps_its_readers_place(
    browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    run = whole_run(tmp_path / "run", status="running")
    server = Server(0, Pages([run], "last", False))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        complaints(browser)
        browser.set_window_size(1000, 600)
        browser.get(f"http://127.0.0.1:{server.port}/")
        find(browser, "input[type=range]").send_keys(Keys.ARROW_LEFT)
        find(browser, "details[data-key=config] > summary").click()
        browser.execute_script("window.scrollTo(0, 400)")
        samples(run, [40])
        append(run, evaluated(40, 55.5))
        until(lambda: arrived(browser, 40))
        slider = find(browser, "input[type=range]")
        assert slider.get_attribute("data-steps") == "10 20 30 40"
        assert slider.get_attribute("aria-valuetext") == "step 20 of 40"
        assert seen(browser)[0].startswith("Synthetic, step 20")
        assert find(browser, "details[data-key=config]").get_attribute("open")
        assert browser.execute_script("return window.scrollY") == 400
        assert "Updated at" in find(browser, "#live").text
        slider.send_keys(Keys.END)  # from here on the newest
        samples(run, [50])
        append(run, evaluated(50, 56.5))
        until(lambda: arrived(browser, 50))
        assert seen(browser)[0].startswith("Synthetic, step 50")
        assert complaints(browser) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    until(lambda: "doesn't answer" in find(browser, "#live").text)
    assert "50 of 60" in find(browser, "main").text
