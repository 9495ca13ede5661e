"""What is built for installation holds the package, its types and its licence, and works from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.docs.shell import ROOT

CODE = {path.relative_to(ROOT).as_posix() for path in (ROOT / "openrlhf").rglob("*.py")}
PAGES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "openrlhf/inspect/page").iterdir()}
PACKAGE = CODE | PAGES | {"openrlhf/py.typed"}


def run(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "openrlhf").rglob("*.*")
        if "__pycache__" not in path.parts
    }
    assert names == data | PACKAGE
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_source_archive_holds_the_package(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names >= PACKAGE | {"pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.slow
def test_the_installed_wheel_works(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "here", str(wheel), cwd=tmp_path)
    here = str(tmp_path / "here")
    where = run("-c", "import openrlhf; print(openrlhf.__file__)", cwd=tmp_path, PYTHONPATH=here)
    assert where.startswith(here)
    listed = run("here/bin/openrlhf", "--help", cwd=tmp_path, PYTHONPATH=here)
    assert "openrlhf" in listed and "dpo" in listed
    assert "--pretrain" in run("-m", "openrlhf.cli.train_sft", "--help", cwd=tmp_path, PYTHONPATH=here)
