"""Every command that a page or an example script shows is understood by the real parser."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from openrlhf.cli import demo
from openrlhf.cli.main import VERBS
from openrlhf.cluster.placement import plan
from openrlhf.config.commands import COMMANDS, PPOConfig, types
from openrlhf.config.dotted import SWITCHES
from openrlhf.config.not_built import NOT_BUILT, NOT_BUILT_IN
from openrlhf.config.other_versions import OTHER_VERSIONS
from openrlhf.config.parse import read, write_yaml
from tests.docs.shell import ROOT, bash_blocks, commands_of, run_by_srun, without_launcher

MODULES = {module: verb for verb, (module, _) in VERBS.items()}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh"))
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}") for page in PAGES for i, block in enumerate(bash_blocks(page), start=1)
]
# What a script is given on its command line; without an entry, nothing.
SCRIPT_WORDS = {
    "examples/scripts/serve_remote_rm.sh": ["model", "model --batch_size 4 --flash_attn"],
    "examples/gsm8k/run.sh": ["data.jsonl out", "data.jsonl out --local"],
    "examples/preferences/run.sh": ["pairs.json out", "pairs.json out --local"],
    "examples/scripts/train_llama_slurm.sh": ["openrlhf.cli.train_rm --pretrain m --dataset d"],
}
SCRIPT_LINES = [
    f"{name} {line}"
    for name in (str(path.relative_to(ROOT)) for path in SCRIPTS)
    for line in SCRIPT_WORDS.get(name, [""])
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: with the examples, the flags of a demo that was run, and what Slurm tells a job."""
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = []
    for name, value in demo.rl_flags(Path("runs/demo"), Path("sft"), Path("rl"), seed=0, cluster=False).items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    write_yaml(read(PPOConfig, words), tmp_path / "runs/demo/rl/run_config.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", [*BLOCKS, *SCRIPT_LINES])
def test_commands_are_understood(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = commands_of(text, folder)
    assert commands
    for words in commands:
        check(words, monkeypatch)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise or end the process, as the real command would, when the words are not understood."""
    rest = without_launcher(words)
    if rest is not None:
        rest = rest[1:] if rest[0] == "preview" else rest  # which hands its words on to the command
        verb = MODULES.get(rest[0], rest[0])
        started: list[object] = []
        module = importlib.import_module(VERBS[verb][0])
        monkeypatch.setattr(module, "run", lambda *args: started.append(args))
        module.main(rest[1:])
        assert started
        assert not {word.removeprefix("--").partition("=")[0] for word in rest} & unbuilt(verb), words
        assert all(Path(file).is_file() for file in python_files(rest)), words
    elif words[0] == "srun":
        program = run_by_srun(words)
        assert program[:2] in (["ray", "start"], ["python3", "-c"]), words
    elif words[0] == "docker":
        assert words[1] == "run" or (ROOT / words[words.index("-f") + 1]).is_file(), words
    elif words[0] in ("sudo", "curl"):
        return  # sets up a machine; nothing of ours is in it
    elif words[0] == "ray":
        assert words[1] in ("start", "get-auth-token"), words
    elif words[0] == "scontrol":
        assert words[1:3] == ["show", "hostnames"], words
    elif words[0] == "make":
        assert set(words[1:]) <= make_targets(), words
    elif words[0] == "pip":
        assert extras(" ".join(words)) <= set(project()["optional-dependencies"]), words
    else:
        assert words[0] == "python" and all(Path(file).is_file() for file in python_files(words)), words


def unbuilt(verb: str) -> set[str]:
    return {*NOT_BUILT, *NOT_BUILT_IN.get(COMMANDS[verb], {})} if verb in COMMANDS else set()


def python_files(words: list[str]) -> list[str]:
    """The file of every word that is ``path/file.py`` or ``path/file.py:name``."""
    return [word.partition(":")[0] for word in words if re.search(r"\.py(:\w+)?$", word)]


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def project() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras(text: str) -> set[str]:
    return {name for names in re.findall(r"\[([\w,]+)\]", text) for name in names.split(",")}


@pytest.mark.parametrize(
    "line",
    [
        "openrlhf ppo --pretrain m --remote_rm_url examples/python/reward.py --prompt_data p --local --epsclip 1",
        "openrlhf ppo --pretrain m --remote_rm_url examples/python/reward.py --prompt_data p --local --ema_beta 0.5",
        "openrlhf ppo --pretrain m --remote_rm_url examples/no_such.py --prompt_data p --local",
        "openrlhf sft --pretrain m --dataset d --output_key a --train_split train",
        "deepspeed --module openrlhf.cli.train_sft --pretrain m",
        "openrlhf demo --fast",
        "make everything",
        "pip install 'openrlhf[everything]'",
    ],
)
def test_wrong_commands_are_found(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = commands_of(line, folder)
    with pytest.raises((AssertionError, SystemExit)):
        check(words, monkeypatch)


def test_the_shell_reads_as_a_shell(folder: Path) -> None:
    words = commands_of("x=(--local)\nopenrlhf ppo \"${x[@]}\" \\\n  --input_template $'Q: {}\\nA: '  # a word", folder)
    assert words == [["openrlhf", "ppo", "--local", "--input_template", "Q: {}\nA: "]]


def test_the_number_of_gpus_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(block for block in bash_blocks(ROOT / "README.md") if "ray job submit" in block)
    said = re.search(r"\((\d+) in all\)", text)
    assert said is not None
    words = command.replace("\\\n", " ").split()
    assert plan(read(PPOConfig, words[words.index("openrlhf.cli.train_ppo_ray") + 1 :])).devices == int(said[1])


RL_SCRIPTS = [path for path in SCRIPTS if re.match(r"train_(ppo|reinforce|grpo)", path.name)]


@pytest.mark.parametrize("script", RL_SCRIPTS, ids=lambda path: path.name)
def test_the_number_of_gpus_of_a_script(script: Path, folder: Path) -> None:
    """As its own text and the page of scripts have it."""
    commands = commands_of(str(script.relative_to(ROOT)), folder)
    (words,) = [rest for rest in map(without_launcher, commands) if rest is not None]
    gpus = plan(read(PPOConfig, words[1:])).devices
    assert re.search(rf"^#.* {gpus} GPUs", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    page = (ROOT / "docs/scripts.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{script.name}` \| .* \| {gpus} \|$", page, flags=re.MULTILINE)


def test_the_slurm_script_starts_ray_on_every_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    commands = commands_of("examples/scripts/train_ppo_llama_ray_slurm.sh", folder)
    starts = [words for words in commands if words[0] == "srun" and run_by_srun(words)[:2] == ["ray", "start"]]
    assert sorted("--head" in words for words in starts) == [False, True]
    assert {(words[2], words[3]) for words in starts} == {("--nodes=1", "--ntasks=1"), ("--nodes=2", "--ntasks=2")}


# Flags of commands that have no configuration.
ELSEWHERE = {*OTHER_VERSIONS, *SWITCHES}  # what the page of other frameworks speaks of
OWN_FLAGS = {"config", "help", "assume", "rows", "export", "steps", "model", "reward_model", "critic_model"}


def test_prose_names_what_there_is() -> None:
    """Commands, flags, targets of make and extras, in pages and in the text of the code."""
    every = {flag for command in COMMANDS.values() for flag in types(command)} | OWN_FLAGS | ELSEWHERE
    there = {
        r"`(?:\.venv/bin/)?openrlhf ([a-z_]+)": set(VERBS),
        r"`--([a-z]\w*)(?=[ =`])": every,
        r"`make (\w+)": make_targets(),
        r"openrlhf\[([\w,]+)\]": set(project()["optional-dependencies"]),
    }
    wrong = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in [*PAGES, ROOT / "benchmarks/RESULTS.md", *sorted((ROOT / "openrlhf").rglob("*.py"))]
        for pattern, names in there.items()
        for found in re.findall(pattern, path.read_text(encoding="utf-8"))
        if not set(found.split(",")) <= names
    ]
    assert not wrong


def test_the_page_of_scripts_has_them_all() -> None:
    named = re.findall(r"`(\w+\.sh)`", (ROOT / "docs/scripts.md").read_text(encoding="utf-8"))
    assert set(named) == {path.name for path in (ROOT / "examples/scripts").glob("*.sh")}


@pytest.mark.parametrize("home", ["{folder}", "/nowhere"])
def test_the_container_has_a_home(home: str, tmp_path: Path) -> None:
    """Also for a user whom it does not know; and runs its words."""
    home = home.format(folder=tmp_path)
    show = ["bash", "-c", 'touch "$HOME/x" && echo "$1|$HOME|$USER"', "bash", "a b"]
    done = subprocess.run(
        [ROOT / "dockerfile/docker-entrypoint.sh", *show],
        env={"PATH": os.environ["PATH"], "HOME": home}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == f"a b|{home if home != '/nowhere' else f'/tmp/home-{os.getuid()}'}|user{os.getuid()}\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_are_bash_and_executable(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], timeout=60, check=True)
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
