"""What the site has beside docs/: README.md is its first page, and the examples that pages link to are files of it."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FIRST = "index.md"
OUTSIDE = re.compile(r"\]\((?:\.\./)*((?:examples|benchmarks)/[^)#]+|[A-Z]\w*(?:\.\w+)?)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page and every file outside docs/ that a page links to."""
    files.append(File.generated(config, FIRST, content=page_of_root("README.md")))
    todo = {name for file in files.documentation_pages() for name in OUTSIDE.findall(file.content_string)}
    done = {"README.md"}
    while todo - done:
        name = sorted(todo - done)[0]
        done.add(name)
        text = page_of_root(name)
        todo |= set(OUTSIDE.findall(text)) if name.endswith(".md") else set()
        # Markdown stays a page; a script is shown as text, not run or downloaded.
        files.append(File.generated(config, copy_of(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ lead to the copies."""
    up = "../" * page.file.src_uri.count("/")

    def inside(link: re.Match[str]) -> str:
        return f"]({up}{copy_of(link[1])})"

    return OUTSIDE.sub(inside, markdown)


def copy_of(name: str) -> str:
    if name == "README.md":
        return FIRST
    return name if name.endswith(".md") else f"{name}.txt"


def page_of_root(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
