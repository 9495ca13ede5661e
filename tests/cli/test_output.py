"""A disk that is full takes no line of a run, and does not end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.is_char_device(), reason="needs the device that is always full")
SAYS = """
import os, sys
from openrlhf.cli.output import spare_output
if sys.argv[1:]:
    spare_output()
for number in range(5):
    print("é" * 9000, flush=number > 2)
    print("said", number, file=sys.stderr)
os.write(int(os.environ["SEEN"]), b"all")
"""


def says(*given: str, out: Path, err: Path) -> tuple[int, str]:
    """The exit code and how far it came."""
    read, write = os.pipe()
    with out.open("w") as stdout, err.open("w") as stderr, os.fdopen(read) as seen:
        code = subprocess.run(
            [sys.executable, "-c", SAYS, *given], stdout=stdout, stderr=stderr, pass_fds=(write,),
            env={**os.environ, "SEEN": str(write)}, timeout=120, check=False,
        ).returncode  # fmt: skip
        os.close(write)
        return code, seen.read()


def test_nothing_is_said_and_nothing_ends() -> None:
    assert says("spared", out=FULL, err=FULL) == (0, "all")
    assert says(out=FULL, err=FULL)[1] == ""


def test_where_there_is_room_all_is_said(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    assert says("spared", out=out, err=err) == (0, "all")
    assert out.read_text() == ("é" * 9000 + "\n") * 5
    assert err.read_text() == "".join(f"said {number}\n" for number in range(5))


def test_a_line_is_there_as_soon_as_it_is_said() -> None:
    killed = "import os; from openrlhf.cli.output import spare_output; spare_output(); print('step 1'); os._exit(1)"
    done = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "step 1\n"


def test_other_troubles_are_errors_still() -> None:
    closed = (
        "import os; from openrlhf.cli.output import spare_output; spare_output(); os.close(1); print(1, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", closed], capture_output=True, text=True, timeout=120, check=False)
    assert "Bad file descriptor" in done.stderr and done.returncode != 0
