"""Write docs/metrics.md and docs/flags.md from the code: ``python docs/generate.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from openrlhf.config.commands import (
    COMMANDS,
    RUN_PREFIX,
    Command,
    defaults,
    flags,
    groups,
    types,
)
from openrlhf.config.not_built import NOT_BUILT, NOT_BUILT_IN
from openrlhf.training.bands import BANDS, band_shown
from openrlhf.training.metric_names import METRICS, REWARD_PARTS, pass_rate

FOLDER = Path(__file__).parent
NOTICE = "<!-- Written by docs/generate.py. Change the code, then run it again. -->"

METRICS_HEAD = f"""{NOTICE}

# Metrics

`metrics.jsonl` in the run folder has one line a step, with these names; TensorBoard and W&B get the same.
A name that does not stand here is refused by the log.

Where it is healthy, and where it is a red flag, are rules of thumb for language models of the usual sizes;
`openrlhf diagnose` and `openrlhf view` go by them ([inspect.md](inspect.md)), and nothing stops because of them.
"""

FLAGS_HEAD = f"""{NOTICE}

# Flags

`sft` is `openrlhf sft` or `python -m openrlhf.cli.train_sft`, and so with `rm`, `dpo`, `kto`, `kd` and `prm`;
`ppo` is `openrlhf ppo` or `python -m openrlhf.cli.train_ppo_ray`. `batch_inference`, `serve_rm`, `interactive_chat`
and `lora_combiner` have the same name as verb and as module. A switch is set by its name alone, or by `true` and
`false`.

`--config run.yaml` takes the same names from a file; what the command line says goes first. The flags of a
training run, defaults included, are written to `run_config.yaml` in `--save_path`.

A sentence in bold says that a flag does nothing here: any value but its default ends the command with that sentence.
"""


def main() -> None:
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name → content."""
    return {"metrics.md": metrics_page(), "flags.md": flags_page()}


def metrics_page() -> str:
    rows = [(f"`{name}`", meaning, *bands(name)) for name, meaning in METRICS.items()]
    parts = (
        f"`{REWARD_PARTS}<name>`",
        "mean over the samples of an entry of `extra_logs` of the reward function",
        "",
        "",
    )
    rates = (
        f"`{pass_rate('<datasource>', 1)}`, `{pass_rate('<datasource>', 1)[:-1]}<n>`",
        "mean over the prompts of `--eval_dataset` of one source of the mean reward, and of the highest of n rewards",
        *("", ""),
    )
    return METRICS_HEAD + table(("name", "meaning", "healthy", "red flag"), [*rows, parts, rates])


def bands(name: str) -> tuple[str, str]:
    """Where a metric is healthy, and what it says outside the range of the red flag."""
    band = BANDS.get(name)
    return ("", "") if band is None else (band_shown(band.healthy), f"not {band_shown(band.red)}: {band.meaning}")


def flags_page() -> str:
    sections = [section(group) for group in dict.fromkeys(g for c in COMMANDS.values() for g in groups(c).values())]
    return FLAGS_HEAD + "".join(sections)


def section(group: type) -> str:
    """One group of flags, of the commands that have it."""
    having = {name: command for name, command in COMMANDS.items() if group in groups(command).values()}
    takes = {name: flags(command, group) for name, command in having.items()}
    every = {flag: f for fields in takes.values() for flag, f in fields.items()}
    rows = []
    for flag, declared in every.items():
        of = {name: command for name, command in having.items() if flag in takes[name]}
        text = declared.metadata["help"] + notes(flag, of, having)
        rows.append((f"`--{flag}`", type_shown(types(next(iter(of.values())))[flag]), default_shown(flag, of), text))
    return f"\n## {group.__doc__}: {listed(having)}\n" + table(("flag", "type", "default", "meaning"), rows)


def listed(names: Iterable[str]) -> str:
    """``a``, ``b`` → ``a`` and ``b``."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def notes(flag: str, of: dict[str, type[Command]], having: dict[str, type[Command]]) -> str:
    """What the help of a flag does not say: which command lacks it, and whether it is built."""
    lacking = [name for name in having if name not in of]
    only = f" ({listed(of)} only)" if len(lacking) >= len(of) else f" (not {listed(lacking)})" if lacking else ""
    if flag in NOT_BUILT:
        return f"{only}. **It {NOT_BUILT[flag]}**"
    refusing = [name for name, command in of.items() if flag in NOT_BUILT_IN.get(command, {})]
    return only + "".join(f". **In `{name}` it {NOT_BUILT_IN[of[name]][flag]}**" for name in refusing)


def type_shown(hint: Any) -> str:
    """``int | None`` → ``int``: that a flag may have no value is seen from its default."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint):
        return type_shown(kinds[0])
    if get_origin(hint) is Literal:
        return " or ".join(f"`{kind}`" for kind in kinds)
    if get_origin(hint) is tuple:
        return f"several {kinds[0].__name__}" if Ellipsis in kinds else f"{len(kinds)} {kinds[0].__name__}"
    return "switch" if hint is bool else str(hint.__name__)


def default_shown(flag: str, of: dict[str, type[Command]]) -> str:
    """One default, or each with its commands where they differ."""
    shown = {name: value_shown(flag, command) for name, command in of.items()}
    by_value = {value: [name for name in shown if shown[name] == value] for value in shown.values()}
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in by_value.items())


def value_shown(flag: str, command: type[Command]) -> str:
    if flag == "wandb_run_name":
        return f"`{RUN_PREFIX[command]}` and the time"
    default = defaults(command)
    if flag not in default:
        return "**required**"
    value = default[flag]
    if value is None or value is False:
        return "–"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "`" + text.replace("\n", "\\n") + "`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in escaped)


if __name__ == "__main__":
    main()
