"""Shell scripts have nothing that shellcheck finds, and the containers name files that are there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from tests.docs.shell import ROOT

SCRIPTS = sorted([*(ROOT / "examples").rglob("*.sh"), *(ROOT / "dockerfile").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.slow
def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck") or pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--format=gcc", *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert len(SCRIPTS) > 30
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_containers_name_files_that_are_there() -> None:
    folder = ROOT / "dockerfile"
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", (folder / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert copied == [".", "dockerfile/docker-entrypoint.sh"]
    assert all((ROOT / name).exists() for name in copied)
    build = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["openrlhf"]["build"]
    assert (folder / build["context"] / build["dockerfile"]).exists()
