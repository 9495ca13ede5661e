"""Run the shell text of a page with stand-ins for every program, and get the words that each program was given.

Bash itself does the quoting, the variables and the arrays, so a command is read as a user's shell would read it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    "openrlhf", "python", "python3", "deepspeed", "torchrun", "ray", "make", "pip", "srun", "scontrol", "docker",
    "sudo", "curl",
)  # fmt: skip
TOOLS = ("bash", "dirname", "head", "id", "mkdir", "mv", "rm")  # the real ones, for scripts
WORD = "\0"


def bash_blocks(page: Path) -> list[str]:
    """The text of every ```bash block of a Markdown page."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands_of(text: str, folder: Path) -> list[list[str]]:
    """Every command that ``text`` runs, scripts inside it included. A program without a stand-in fails."""
    programs, record = folder / ".venv" / "bin", folder / "commands"
    programs.mkdir(parents=True, exist_ok=True)
    bash = shutil.which("bash")
    assert bash is not None
    for name in PROGRAMS:
        stand_in = programs / name
        # A file for each command, since some run at once. What is piped to it is read: a pipe that nobody reads ends
        # the program before it, now and then.
        stand_in.write_text(
            f"#!{bash}\nprintf '%s\\0' {name} \"$@\" > '{record}/'$EPOCHREALTIME.$$\nwhile read -r; do :; done\n",
            encoding="utf-8",
        )
        stand_in.chmod(0o755)
    for name in TOOLS:
        tool = shutil.which(name)
        assert tool is not None
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(tool)
    (folder / "examples").unlink(missing_ok=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir()
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", text],
        cwd=folder,
        # A script may not end what it started in the background before that has left its words.
        env={**os.environ, "PATH": str(programs), "BASH_FUNC_kill%%": "() { :; }"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [file.read_text(encoding="utf-8").split(WORD)[:-1] for file in sorted(record.iterdir())]


def without_launcher(words: list[str]) -> list[str] | None:
    """The words from the verb or module on: ``["ppo", …]`` or ``["openrlhf.cli.train_sft", …]``; None for others."""
    if words[0] == "openrlhf":
        return words[1:]
    if words[:3] == ["ray", "job", "submit"]:
        return without_launcher(words[words.index("--") + 1 :])
    if words[0] == "srun":
        return without_launcher(run_by_srun(words))
    for place, word in enumerate(words):
        if word.startswith("openrlhf.cli."):
            assert words[place - 1] == ("--module" if words[0] == "deepspeed" else "-m"), words
            return words[place:]
    return None


def run_by_srun(words: list[str]) -> list[str]:
    """The program with its words, behind the options of srun, which are written ``--name=value``."""
    return next(words[place:] for place in range(1, len(words)) if not words[place].startswith("--"))
