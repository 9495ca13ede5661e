"""The pages say what the code says: generated tables, quoted code, code that runs, links, layers."""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from openrlhf.config.commands import Command, types
from openrlhf.rollout.rewards import call_reward_function, load_reward_function
from openrlhf.training import ppo
from openrlhf.training.metric_names import METRICS
from tests.docs.shell import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md"), reverse=True), *sorted(DOCS.rglob("*.md"))]


def test_generated_pages_are_up_to_date() -> None:
    """If this fails: python docs/generate.py"""
    for name, text in runpy.run_path(str(DOCS / "generate.py"))["pages"]().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text


def test_generated_pages_are_complete() -> None:
    flags, metrics = read("flags.md"), read("metrics.md")
    assert all(f"\n| `--{name}` | " in flags for command in get_args(Command) for name in types(command))
    assert all(f"\n| `{name}` | " in metrics for name in METRICS)
    assert "| `--max_epochs` | int | sft: `2`; rm, dpo, kto, kd, prm, ppo: `1` |" in flags
    assert "use --dataset_split (`sft` only). **It never had an effect: use --dataset_split.** |" in flags
    assert "| `--dataset` | str | **required** |" in flags
    assert all(line.count(" | ") == 3 for line in flags.splitlines() if line.startswith("| `--"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """`training/update.py` and its like, in backticks, is a file of the package or of the project."""
    named = set(re.findall(r"`([\w/]+/[\w/]*\.(?:py|sh|md))`", page.read_text(encoding="utf-8")))
    placeholders = {"path/file.py", "cli/train_x.py"}
    assert not [
        name for name in named - placeholders if not (ROOT / name).exists() and not (ROOT / "openrlhf" / name).exists()
    ]


def test_the_quoted_loop_is_the_loop() -> None:
    assert ppo.__doc__ is not None
    loop = re.findall(r"^    (.+)$", ppo.__doc__, flags=re.MULTILINE)
    assert len(loop) == 7
    assert "```\n" + "\n".join(loop) + "\n```" in read("architecture.md")


def test_the_quoted_layers_are_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = " → ".join(contract["contracts"][0]["layers"]).replace(" | ", " · ")
    assert all(
        f"\n{layers}\n" in page.read_text(encoding="utf-8")
        for page in (DOCS / "architecture.md", ROOT / "README.md", ROOT / "AGENTS.md")
    )


@pytest.mark.parametrize("name", ["data.md", "extending.md"])
def test_python_blocks_run(name: str, tiny_folder: Path) -> None:
    """In order, in one namespace, with ``folder``. A block that begins with ``# path`` is that file, less its head."""
    names: dict[str, object] = {"folder": str(tiny_folder)}
    for block in blocks(read(name)):
        quoted = re.match(r"# (\S+\.py)\n", block)
        if quoted is not None:
            assert block[quoted.end() :] == without_head(ROOT / quoted[1])
        exec(compile(block, name, "exec"), names)


def test_the_reward_of_the_docs_pays_what_it_says(tmp_path: Path) -> None:
    (block,) = blocks(read("rewards.md"))
    (tmp_path / "reward.py").write_text(block)
    labels, answers = ["a\n#### 72"] * 4, ["72", "is 1,072, no:\n#### 72<|im_end|>", "#### 7", ""]
    queries = [f"24 + 48? {answer}" for answer in answers]
    rewards = call_reward_function(
        load_reward_function(str(tmp_path / "reward.py")), queries, ["24 + 48? "] * 4, labels
    )
    assert (rewards.rewards, rewards.scores) == ([1.0, 1.1, 0.1, 0.0], [1.0, 1.0, 0.0, 0.0])
    assert rewards.extra_logs == {"form": [0.0, 1.0, 1.0, 0.0]}


def test_the_reward_of_the_readme_is_the_file() -> None:
    (block,) = blocks(PAGES[0].read_text(encoding="utf-8"))
    assert block in (ROOT / "examples/python/reward.py").read_text(encoding="utf-8")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def without_head(path: Path) -> str:
    """The text of a file after its docstring and ``from __future__`` line."""
    text = path.read_text(encoding="utf-8")
    first = next(node for node in ast.parse(text).body[1:] if "__future__" not in ast.unparse(node))
    return "".join(text.splitlines(keepends=True)[first.lineno - 1 :])


@pytest.mark.parametrize("name", ["README_zh.md", "README_ja.md"])
def test_a_translation_has_the_content_of_the_readme(name: str) -> None:
    """The same blocks, sections, table rows and links, in the same order; the numbers are those of the original."""
    original, translation = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", name))
    for content in (
        r"^```[\s\S]*?^```$",
        r"^#+ ",
        r"^\|(?= `|-|:)",
        r"\]\((docs/[^)]+|examples/[^)]+)\)",
        r"\d+\.\d+ %",
    ):
        expected = re.findall(content, original, flags=re.MULTILINE)
        assert len(expected) > 1
        assert re.findall(content, translation, flags=re.MULTILINE) == expected
