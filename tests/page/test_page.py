"""The example's page in a real browser, on a real API, relay and Redis.

`make page-test` runs it. RELAY_BIN and REDIS_SERVER choose the binaries.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import environment
from stack import Stack

# A job takes up to 20 s; a busy machine gets some more.
DEADLINE_S = 60.0
POLL_S = 0.05
MIDWAY = 20

Data = dict[str, str]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    relay = environment.relay_binary()
    python = environment.install(environment.API_REQUIREMENTS)
    with Stack(environment.redis_server(), relay, python) as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    for switch in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--disable-sync",
        "--no-first-run",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(switch)
    # Naming the driver keeps selenium from looking for one to download.
    driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def card(stack: Stack, browser: Chrome) -> Card:
    """A job that was just started with the page's button."""
    browser.get(stack.page)
    button = browser.find_element(By.ID, "new-job")
    waiting = WebDriverWait(browser, DEADLINE_S, POLL_S)
    waiting.until(lambda _: button.is_enabled(), "the page did not get its list")
    before = cards(browser)
    button.click()
    new = waiting.until(lambda _: cards(browser) - before, "no new job came up")
    assert len(new) == 1
    return Card(browser, new.pop())


def test_bar_moves_until_the_job_is_done(card: Card) -> None:
    progress = card.wait_for("a snapshot", lambda data: data["snapshots"] == "1")
    for _ in range(3):
        progress = card.wait_for("more progress", further_than(progress))
    assert progress["socket"] == "open"

    done = card.wait_for("the end of the job", is_done)
    assert done["progress"] == "100"
    assert_gapless(done)


def test_reload_goes_on_from_where_the_job_is(card: Card) -> None:
    before = card.wait_for("half a job", is_midway)
    card.browser.refresh()

    after = card.wait_for("a snapshot", lambda data: data["snapshots"] == "1")
    assert int(after["seq"]) >= int(before["seq"])
    assert int(after["progress"]) >= int(before["progress"])
    assert after["state"] == "running", "the reload was too late to show anything"
    card.wait_for("more progress", further_than(after))
    assert_gapless(card.wait_for("the end of the job", is_done))


def test_dropped_connection_resumes_with_its_cursor(card: Card) -> None:
    card.wait_for("half a job", is_midway)
    card.press_drop()
    away = card.wait_for("a closed socket", lambda data: data["socket"] == "dropped")

    back = card.wait_for("a second socket", lambda data: data["connects"] == "2")
    card.wait_for("more progress", further_than(back))
    done = card.wait_for("the end of the job", is_done)
    assert_gapless(done)
    # The cursor was enough: no second snapshot, and what came meanwhile is there.
    assert done["snapshots"] == "1"
    assert int(done["events"]) > int(away["events"])


def test_relay_that_crashed_is_no_loss(stack: Stack, card: Card) -> None:
    before = card.wait_for("half a job", is_midway)
    stack.crash_relay()

    back = card.wait_for("a second socket", lambda data: data["connects"] == "2")
    done = card.wait_for("the end of the job", is_done)
    assert_gapless(done)
    assert done["snapshots"] == "1"
    assert int(done["events"]) > int(back["events"]) >= int(before["events"])


def test_counters_tell_lost_and_repeated_entries(card: Card) -> None:
    """The other tests rely on these two numbers, so they must be able to say no."""
    card.wait_for("a snapshot", lambda data: data["snapshots"] == "1")
    card.cut_off()
    before = card.data()
    assert_gapless(before)

    skipping_two = int(before["seq"]) + 3
    card.feed("9999999999999-1", skipping_two)
    card.feed("9999999999999-1", skipping_two)
    published_twice = "9999999999999-2"
    card.feed(published_twice, skipping_two)
    data = card.data()
    assert (data["missed"], data["repeated"]) == ("2", "1")


class Card:
    """One job on the page. What it shows is also in its data- attributes."""

    def __init__(self, browser: Chrome, job: str) -> None:
        self.browser = browser
        self.job = job

    def data(self) -> Data:
        """All of one moment; empty while the page has no such card."""
        script = (
            "const card = document.getElementById(arguments[0]);"
            "return card ? {...card.dataset} : {};"
        )
        return self.browser.execute_script(script, f"job-{self.job}")

    def wait_for(self, what: str, holds: Callable[[Data], bool]) -> Data:
        def look(_: Chrome) -> Data | None:
            data = self.data()
            return data if data and holds(data) else None

        try:
            found = WebDriverWait(self.browser, DEADLINE_S, POLL_S).until(look)
        except TimeoutException:
            frames = self.browser.find_element(By.ID, "jobs").text
            pytest.fail(f"waited for {what}; the card has {self.data()}\n{frames}")
        assert found
        return found

    def press_drop(self) -> None:
        self.browser.find_element(By.CSS_SELECTOR, f"#job-{self.job} .drop").click()

    def cut_off(self) -> None:
        """No real frame comes from here on."""
        self.browser.execute_script(
            """
            const job = jobs.get(arguments[0]);
            job.ws.onmessage = job.ws.onclose = null;
            job.ws.close();
            """,
            self.job,
        )

    def feed(self, entry: str, seq: int) -> None:
        """An event as if it came from the relay."""
        self.browser.execute_script(
            """
            const [id, entry, seq] = arguments;
            const { progress, state } = jobs.get(id);
            const data = { seq, progress, state };
            show(jobs.get(id), { type: "event", id: entry, cursor: entry, data });
            """,
            *(self.job, entry, seq),
        )


def cards(browser: Chrome) -> set[str]:
    script = "return [...document.querySelectorAll('.job')].map(c => c.dataset.job);"
    return set(browser.execute_script(script))


def further_than(earlier: Data) -> Callable[[Data], bool]:
    return lambda data: int(data["progress"] or 0) > int(earlier["progress"])


def is_midway(data: Data) -> bool:
    return int(data["progress"] or 0) >= MIDWAY


def is_done(data: Data) -> bool:
    return data["state"] == "done"


def assert_gapless(data: Data) -> None:
    assert (data["missed"], data["repeated"]) == ("0", "0")
