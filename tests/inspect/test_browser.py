"""The pages in a real browser: sorting, filtering, colours, following links; and that planted scripts do not run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openrlhf.inspect.pages import Pages
from tests.inspect.runs import step_of, write_run
from tests.inspect.test_pages import EVIL, stored

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH"),
]
HERE = ("http://127.0.0.1:", "file:")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [{"reward": i / 10, "kl": 0.8 * i} for i in range(1, 4)]
    return write_run(tmp_path_factory.mktemp("runs") / "one", lines, [step_of(n, stored(n)) for n in (1, 3)])


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    """With rewards half as high, and whose samples nothing flags."""
    quiet = [replace(s, per_token={}, truncated=False, outcome=s.row / 2, reward=s.row / 2) for s in stored(1)]
    return write_run(run.with_name("two"), [{"reward": 0.5}, {"reward": 0.25}], [step_of(1, quiet)])


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[str]:
    yield from serving(run)


@pytest.fixture(scope="module")
def both_served(run: Path, other: Path) -> Iterator[str]:
    yield from serving(run, other)


def serving(*runs: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "openrlhf.cli.view", *map(str, runs), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    assert found
    yield found.group(0)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=120) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which a dialog, an error or a request to elsewhere fails the test."""
    wrong: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith(HERE) else wrong.append(asked.url))
    yield opened
    opened.close()
    assert not wrong


def rows(page: Any) -> list[str]:
    return page.eval_on_selector_all("tbody tr:not([hidden])", "rows => rows.map(row => row.dataset.row)")


def test_rollouts_are_sorted_and_filtered(page: Any, served: str) -> None:
    page.goto(served)
    page.click("text=KL run-away")  # opens the finding
    page.click(".steps a:text-is('3')")
    assert rows(page) == list("01234567")
    page.click("button[data-sort=reward]")
    assert rows(page) == list("32145670")
    page.click("button[data-sort=reward]")
    assert rows(page) == list("01456723")
    page.click("button[data-sort=length]")
    assert rows(page)[:3] == list("276")  # the planted script is the longest
    page.fill("input[name=low]", "1.5")
    assert sorted(rows(page)) == ["2", "3"] and page.inner_text("output") == "2 shown"
    page.fill("input[name=low]", "")
    page.check("input[name=truncated]")
    assert rows(page) == ["5"]
    page.uncheck("input[name=truncated]")
    page.check("input[name=flagged]")
    assert len(rows(page)) == 8  # engine and trainer differ in all
    page.uncheck("input[name=flagged]")
    page.fill("input[name=text]", "ALERT(2)")
    assert len(rows(page)) == 8  # in every prompt
    page.fill("input[name=text]", "")
    page.fill("input[name=long]", "8")
    assert sorted(rows(page)) == ["0", "1"]


def test_tokens_are_coloured_and_tell_their_numbers(page: Any, served: str) -> None:
    page.goto(f"{served}/step/0/3")
    page.click("a:text-is('3:3')")
    page.wait_for_selector(".tokens")
    colour = "span => getComputedStyle(span).backgroundColor"
    first = ".tokens .chosen >> nth=0"
    assert page.eval_on_selector(first, colour).startswith("rgba(22, 163, 74")  # advantage 2.5
    assert page.eval_on_selector(".tokens .given >> nth=0", colour) == "rgba(0, 0, 0, 0)"
    page.select_option("select.field", "log_probs")
    assert page.eval_on_selector(first, colour).startswith("rgba(220, 38, 38")
    page.hover(first)
    told = page.inner_text(".told")
    assert '"y": chosen by the policy' in told and "advantage 2.5" in told and "engine − trainer -0.25" in told
    page.hover(".tokens .given >> nth=0")
    assert "outside the action mask" in page.inner_text(".told")
    page.click("a:text-is('prompt 40')")
    assert page.locator("a:text-is('1:3')").count() == 1  # the same prompt at another step


def test_two_runs_stand_beside_each_other(page: Any, both_served: str) -> None:
    page.goto(both_served)
    reward = page.locator("figure", has=page.locator("figcaption b:text-is('reward')"))
    assert reward.locator("polyline.run0").count() == reward.locator("polyline.run1").count() == 1
    assert "0.25" in reward.locator("figcaption .run1").inner_text()
    page.click(".steps a:text-is('1') >> nth=0")
    page.click("a:text-is('the same step of the other run')")
    page.check("input[name=flagged]")
    assert rows(page) == []
    page.uncheck("input[name=flagged]")
    page.click("tbody a:text-is('41') >> nth=0")
    columns = page.locator(".beside > div")  # the same prompt: step after step in one run, and in the other
    assert [columns.nth(i).locator("a:text-is('1:6')").count() for i in (0, 1)] == [1, 1]
    assert [columns.nth(i).locator("a:text-is('3:6')").count() for i in (0, 1)] == [1, 0]


def test_a_page_of_a_run_that_goes_on_follows_it(page: Any, served: str, run: Path) -> None:
    page.goto(served)
    new = page.locator("circle title", has_text="step 9: 0.9")
    assert new.count() == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "reward": 0.9}\n')
    new.first.wait_for(state="attached")


def test_the_exported_file_works_without_a_server(page: Any, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    file.write_text(Pages([run]).export(), encoding="utf-8")
    page.goto(file.as_uri())
    page.click("#step-0-3 a:text-is('3:2')")
    assert page.evaluate("location.hash") == "#sample-0-3-2"
    assert EVIL in page.inner_text("#sample-0-3-2 .turn.policy pre")
    assert page.locator("#sample-0-3-2 .tokens .chosen").count() == len(EVIL)
