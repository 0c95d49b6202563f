"""The chat page in a browser: it streams, shows foreign text as text, stops, and asks nobody else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from served import Served

FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("the chat page is tested in Chromium, by chromedriver; one of them is not installed")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = Chrome(options=options, service=Service(driver))
    yield made
    made.quit()


def test_the_page_allows_nothing_from_elsewhere(served: Served) -> None:
    response = served.http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    links = re.findall(r"""(?:src|href|action)=["']?([^"'>\s]+)|(https?://[^"'\s]+)""", response.text)
    assert {first[:5] or second for first, second in links} == {"data:", "http://www.w3.org/2000/svg"}


def test_a_conversation(served: Served, browser: Chrome) -> None:
    def one(selector: str) -> WebElement:
        return browser.find_element(By.CSS_SELECTOR, selector)

    def all_of(selector: str) -> list[WebElement]:
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def say(text: str) -> None:
        one("#message").send_keys(text + Keys.ENTER)

    wait = WebDriverWait(browser, 20, poll_frequency=0.05)
    browser.get(served.url)
    wait.until(lambda _: one("#model").text == "tiny")
    one("#gear").click()
    one("#most").send_keys("12")
    one("#temperature").send_keys("0")
    one("#system").send_keys("Be <b>brief</b>")
    one("#gear").click()
    say("<img src=x onerror=alert(1)>")
    wait.until(lambda _: "tokens/s" in one(".figures").text)
    assert "KV full" in one(".figures").text
    assert one(".user").text == "<img src=x onerror=alert(1)>"
    messages = [
        {"role": "system", "content": "Be <b>brief</b>"},
        {"role": "user", "content": "<img src=x onerror=alert(1)>"},
    ]
    made = served.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=12).json()
    assert one(".answer .text").get_property("textContent") == made["choices"][0]["message"]["content"]
    browser.execute_script("document.getElementById('most').value = ''")
    with served.pace.of(0.05):
        say("More")
        wait.until(lambda _: len(all_of(".answer")) == 2 and all_of(".answer .text")[1].text)
        one("body").send_keys(Keys.ESCAPE)
        wait.until(lambda _: all_of(".figures")[1].text == "stopped")
        served.wait_idle(2)  # of an answer that would take 20 s
    one("#fresh").click()
    assert not all_of(".answer")
    assert one("#empty").is_displayed()
    wrong = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not wrong
