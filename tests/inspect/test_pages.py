"""What stands on the pages, that nobody's text becomes markup, and that the server answers this machine alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from openrlhf.cli import view
from openrlhf.inspect.flags import flags
from openrlhf.inspect.pages import Pages
from openrlhf.inspect.serve import view_app
from openrlhf.training.sample_file import StoredSample, Turn
from tests.inspect.runs import sample, step_of, write_run

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></pre></td>&lt;{{ 7*7 }}"


class Tags(HTMLParser):
    """The elements of a page with their attributes, and the text inside each class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [own for name, own in self.found if name == tag and wanted.items() <= own.items()]


def stored(step: int, shift: float = 0.0) -> list[StoredSample]:
    """Two prompts with four samples; row 2 holds what nobody should run, row 5 was cut, rows 4 to 7 are dead."""
    made = []
    for row in range(8):
        answer = EVIL if row == 2 else "yes " * (row + 1)
        reward = float(row) + shift if row < 4 else 1.0
        per_token = {"advantages": -0.5 + row, "log_probs": -1.0, "engine_log_probs": -1.25, "kl": 0.01 * row}
        made.append(
            sample(row, reward, answer, prompt=f"Q{row // 4}{EVIL}: ", prompt_id=40 + row // 4, truncated=row == 5,
                   per_token=per_token, label=EVIL, source=EVIL, extras={EVIL: 1.0}, score=None)
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [{"reward": i / 10, "kl": 0.3 * i, "entropy": 1.0, f"reward/{EVIL}": 1.0} for i in range(1, 6)]
    steps = [step_of(number, stored(number), rows=16) for number in (1, 3, 5)]
    return write_run(tmp_path_factory.mktemp("runs") / "one", lines, steps)


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    lines = [{"reward": i / 20} for i in range(1, 4)]
    return write_run(run.with_name("two"), lines, [step_of(1, stored(1, shift=0.5))], flags={"eps_clip": 0.1})


def every_page(pages: Pages) -> dict[str, str]:
    return {
        "overview": pages.overview(),
        "step": pages.step(0, 3),
        "sample": pages.sample(0, 3, 2),
        "prompt": pages.prompt(40),
        "export": pages.export(),
    }


def test_nobodys_text_becomes_markup(run: Path, other: Path) -> None:
    for name, page in every_page(Pages([run, other])).items():
        tags = Tags(page)
        scripts = tags.all("script")
        data = tags.all("script", type="application/json")
        assert len(scripts) - len(data) == 1, name  # our own
        assert not tags.all("img"), name
        assert not [own for _, own in tags.found if any(attribute.startswith("on") for attribute in own)], name
        assert "alert(1)</script>" not in page, name
        if name != "overview":
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "{{ 7*7 }}" in page, name


def test_the_policy_of_a_page_allows_its_own_script_alone(run: Path) -> None:
    import base64
    import hashlib

    page = Pages([run]).sample(0, 3, 2)
    (policy,) = Tags(page).all("meta", **{"http-equiv": "Content-Security-Policy"})
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["content"] is not None
    assert f"script-src 'sha256-{digest}'" in policy["content"] and "default-src 'none'" in policy["content"]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)  # nothing from elsewhere


def test_the_overview_has_a_curve_of_every_metric_with_its_verdict(run: Path, other: Path) -> None:
    page = Pages([run, other]).overview()
    tags = Tags(page)
    assert len(tags.all("svg")) == len(tags.all("figure")) == 4
    assert len(tags.all("polyline", **{"class": "run1"})) == 1
    assert 'class="badge red" title="healthy: -0.1 to 0.2; red flag: the policy has left the reference"' in page
    assert "<td>--eps_clip</td><td>0.2</td><td>0.1</td>" in page
    assert "KL run-away" in page and "thin evidence: only 5 logged steps" in page
    assert {own["href"] for own in tags.all("a")} >= {"/step/0/1", "/step/0/3", "/step/0/5", "/step/1/1"}


def test_the_rollouts_of_a_step(run: Path, other: Path) -> None:
    pages = Pages([run, other])
    tags = Tags(pages.step(0, 3))
    rows = [own for own in tags.all("tr") if "data-row" in own]
    assert [own["data-reward"] for own in rows] == ["0.0", "1.0", "2.0", "3.0", "1.0", "1.0", "1.0", "1.0"]
    assert [own["data-row"] for own in rows if own["data-truncated"] == "1"] == ["5"]
    assert [own["data-row"] for own in rows if own["data-flags"] != "0"] == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert rows[0]["data-length"] == "4" and float(rows[2]["data-advantage"] or "") == 1.5
    assert {"/step/0/1", "/step/0/5", "/sample/0/3/7", "/prompt/41"} <= {own["href"] for own in tags.all("a")}
    assert "8 of 16 samples" in pages.step(0, 3)
    assert [own["href"] for own in Tags(pages.step(0, 1)).all("a", **{"class": "run1"})] == ["/step/1/1"]


def test_why_samples_are_flagged() -> None:
    step = step_of(1, stored(1))
    found = flags(step)
    assert all("engine and trainer differ by 0.25 a token" in reasons for reasons in found.values())
    assert {row for row, reasons in found.items() if "truncated" in reasons} == {5}
    assert {row for row, r in found.items() if "all rewards of the prompt are the same" in r} == {4, 5, 6, 7}
    quiet = [replace(s, per_token={}, truncated=False) for s in step.samples[:4]]
    assert flags(replace(step, samples=quiet)) == {}
    nothing = torch.zeros(len(quiet[1].tokens), dtype=torch.bool)
    odd = [replace(quiet[0], outcome=float("nan")), replace(quiet[1], action_mask=nothing)]
    assert flags(replace(step, samples=odd)) == {0: ["its reward is no number"], 1: ["empty"]}


def test_the_tokens_of_a_sample(run: Path) -> None:
    page = Pages([run]).sample(0, 3, 3)
    tags = Tags(page)
    (text,) = re.findall(r'class="data">(.*?)</script>', page)
    data: dict[str, Any] = json.loads(text)
    given, chosen = tags.all("span", **{"class": "given"}), tags.all("span", **{"class": "chosen"})
    assert len(chosen) == len("yes " * 4) and len(given) + len(chosen) == len(data["ids"])
    assert list(data["fields"]) == ["advantages", "gap", "log_probs", "engine_log_probs", "kl"]
    assert data["fields"]["gap"][-1] == -0.25 and data["fields"]["gap"][0] is None  # outside the action mask
    assert [own["value"] for own in tags.all("option")] == list(data["fields"])
    assert '<span class="chosen" tabindex="0">y</span><span class="chosen" tabindex="0">e</span>' in page


def test_a_prompt_across_steps_and_runs(run: Path, other: Path) -> None:
    page = Pages([run, other]).prompt(41)
    links = [own["href"] for own in Tags(page).all("a") if (own["href"] or "").startswith("/sample")]
    assert links == [f"/sample/0/{step}/{row}" for step in (1, 3, 5) for row in range(4, 8)] + [
        f"/sample/1/1/{row}" for row in range(4, 8)
    ]


def test_the_exported_file_holds_all_it_links_to(run: Path) -> None:
    page = Pages([run]).export()
    tags = Tags(page)
    ids = {own["id"] for _, own in tags.found if "id" in own}
    assert {"overview", "step-0-1", "step-0-5", "sample-0-5-7", "prompt-41"} <= ids and "step-0-3" not in ids
    assert {(own["href"] or "").removeprefix("#") for own in tags.all("a")} <= ids
    assert "step-0-3" in {own.get("id") for _, own in Tags(Pages([run]).export([3])).found}


def test_the_server(run: Path) -> None:
    client = TestClient(view_app(Pages([run])), base_url="http://127.0.0.1")
    for path in ("/", "/step/0/3", "/sample/0/3/2", "/prompt/40"):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html"), path
    assert client.get("/state").json() == [[5, 5]]
    for path, sentence in [
        ("/step/0/4", "has no samples of step 4"),
        ("/step/7/1", "there is no run 7"),
        ("/sample/0/3/99", "step 3 has no stored sample 99"),
    ]:
        answer = client.get(path)
        assert answer.status_code == 404 and sentence in answer.text
        assert answer.headers["content-type"].startswith("text/plain")
    huge = "9" * 400
    for path in (
        f"/step/0/{huge}",
        f"/step/{huge}/1",
        f"/sample/0/3/{huge}",
        f"/prompt/{huge}",
        f"/prompt/{huge * 20}",
    ):
        assert client.get(path).status_code == 404
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.post("/").status_code == 405
    stranger = TestClient(view_app(Pages([run])), base_url="http://evil.example")
    assert stranger.get("/").status_code == 400  # a name that somebody pointed at this machine


def test_a_run_that_goes_on_is_read_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, [{"reward": 0.5}])
    client = TestClient(view_app(Pages([run])), base_url="http://localhost")
    assert client.get("/state").json() == [[1]]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward": 0.7}\n{"step": 3, "rew')
    assert client.get("/state").json() == [[2]]
    assert "step 2: 0.7" in client.get("/").text


def test_the_command_writes_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view.main([str(run), "--export", str(tmp_path / "run.html")])
    assert (tmp_path / "run.html").read_text() == Pages([run]).export()
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere is no run folder"),
        (["{run}", "nowhere"], "nowhere is no run folder"),
        (["{run}", "--steps", "3"], "--steps chooses what --export FILE writes"),
        (["{run}", "--export", "{run}"], "cannot be written (Is a directory)"),
        (["{run}", "--export", "x", "--steps", "3", "4"], "--steps 4: samples are stored of 3 steps from 1 to 5, not"),
        (["{run}", "--export", "x", "--steps", "4", "6"], "--steps 4 6: samples"),
    ],
)
def test_what_cannot_be_shown(run: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        view.main([word.format(run=run) for word in words])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_turns_say_who_wrote_them(tmp_path: Path) -> None:
    turns = [Turn(False, "ask"), Turn(True, "call"), Turn(False, "tool says"), Turn(True, "so it is")]
    run = write_run(tmp_path, [{"reward": 1.0}], [step_of(1, [replace(sample(0), turns=turns)])])
    who = re.findall(r'class="who">(\w+)</span><pre>([^<]*)', Pages([run]).sample(0, 1, 0))
    assert who == [("prompt", "ask"), ("policy", "call"), ("environment", "tool says"), ("policy", "so it is")]
