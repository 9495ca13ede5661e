"""``openrlhf check COMMAND --flag value ...``: everything short of training, in seconds and without a GPU.

COMMAND is a verb (sft, ppo), a module (train_dpo, openrlhf.cli.train_dpo) or a whole line with its launcher, as
`deepspeed --num_gpus 8 --module openrlhf.cli.train_sft`; its flags follow. Nothing is written, no weights are loaded.

  --assume CLUSTER   devices that are not here: 8xH100-80G, or 2x8xH100-80G for two machines
  --rows N           rows of each data set that are looked at (default: 10000)

The exit code is 0 when the run would start, 1 when it would not, 2 for a line that is no command.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from openrlhf.cli.main import VERBS
from openrlhf.config.commands import (
    COMMANDS,
    Command,
    PPOConfig,
    TrainCommand,
)
from openrlhf.config.parse import resolve

if TYPE_CHECKING:
    from openrlhf.check.findings import Finding
    from openrlhf.plan.cluster import Cluster
    from openrlhf.types import Sample

LAUNCHERS = ("openrlhf", "python", "python3", "deepspeed", "torchrun", "ray", "srun")
PROCESSES = ("num_gpus", "nproc_per_node", "nproc-per-node")
MACHINES = ("num_nodes", "nnodes")
ROWS = 10_000


@dataclass(frozen=True)
class Line:
    """A command line taken apart. ``workers`` is how many processes its launcher starts, None without one."""

    verb: str
    flags: list[str]
    workers: int | None
    assume: str | None
    rows: int


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if words else 2)
    try:
        line = take_apart(words)
        config = resolve(COMMANDS[line.verb], line.flags)  # type: ignore[type-var]
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if code := run(line, config):
        raise SystemExit(code)


def run(line: Line, config: Command) -> int:
    """Look, print, and answer with the exit code."""
    from openrlhf.check.findings import summary, would_start
    from openrlhf.check.memory import gpus_here
    from openrlhf.cli.process import quiet_libraries
    from openrlhf.plan.cluster import parse_cluster

    quiet_libraries()
    try:
        asks_ray = isinstance(config, PPOConfig) and "RAY_ADDRESS" in os.environ
        cluster = (None if asks_ray else gpus_here()) if line.assume is None else parse_cluster(line.assume, "--assume")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    findings = []
    for finding in look(line, config, cluster):
        findings.append(finding)
        print(finding.line(), flush=True)
    print(summary(findings))
    return 0 if would_start(findings) else 1


def look(line: Line, config: Command, cluster: Cluster | None) -> Iterator[Finding]:
    """Every finding, as it is found."""
    from openrlhf.check.devices import look_at_placement, look_at_processes
    from openrlhf.check.disk import look_at_disk
    from openrlhf.check.findings import Finding, gathered
    from openrlhf.check.memory import look_at_memory
    from openrlhf.check.models import look_at_models
    from openrlhf.check.packages import look_at_packages
    from openrlhf.config.rules import broken

    wrong = broken(config)
    yield from (Finding("error", "flags", sentence) for sentence in wrong)
    if not wrong:
        yield Finding("ok", "flags", f"{len(line.flags)} words, no rule is broken")
    yield from gathered("packages", look_at_packages(config, line.workers is not None))
    models = list(gathered("models", look_at_models(config)))
    yield from models
    if not isinstance(config, TrainCommand):
        return
    readable = all(finding.severity != "error" for finding in models)
    missing = f"--pretrain {config.model.pretrain}: no "
    found = not any(missing in finding.sentence for finding in models)
    yield from look_at_data(line, config, found)
    if readable:
        yield from gathered("disk", look_at_disk(config))
    workers = line.workers
    if isinstance(config, PPOConfig):
        yield from gathered("devices", look_at_placement(config, cluster))
    else:
        if workers is None and line.assume is not None and cluster is not None:
            workers = cluster.gpus
        yield from gathered("devices", look_at_processes(config, workers))
    if cluster is not None and found:  # for which no weights are read
        each = cluster.gpus if isinstance(config, PPOConfig) else workers or 1
        # A model that cannot be read was told of above.
        told = gathered("memory", look_at_memory(config, cluster, each))
        yield from (finding for finding in told if readable or finding.severity != "error")


def look_at_data(line: Line, config: TrainCommand, found: bool) -> Iterator[Finding]:
    """Rows, and what a reward function says of the first of them. Where no tokenizer is ``found``, which
    ``look_at_models`` has told, bytes stand in for tokens; a hub that does not answer is not asked again."""
    from openrlhf.check.findings import Finding, gathered
    from openrlhf.check.rewards import look_at_rewards
    from openrlhf.check.rows import look_at_columns, look_at_rows, look_at_template, read, sources
    from openrlhf.check.stand_in import byte_tokenizer, unlimited
    from openrlhf.data.preview import print_lengths, print_samples, terminal
    from openrlhf.models.load import load_tokenizer

    tokenizer: Any = None
    measured = False
    if found:
        with suppress(ValueError):
            tokenizer, measured = load_tokenizer(config.model.pretrain, config.model), True
    prompts: list[Sample] = []
    if measured:
        yield from gathered("data", look_at_template(config.data, tokenizer))
    try:
        if not measured:
            tokenizer, config = byte_tokenizer(config), unlimited(config)
        reader = command_module(line.verb).reader(config, tokenizer)
        for flag, names, split, probs in sources(config):
            samples, report, columns = read(config, reader, flag, names, split, probs, line.rows)
            if flag != "--eval_dataset":
                prompts = samples
            if flag != "--eval_dataset" and measured:
                print_samples(terminal(), tokenizer, samples[: len(reader.titles)], reader.titles, reader.note)
                print_lengths(terminal(), samples, reader.limit_flag, reader.limit)
                print()
            yield from gathered("data", look_at_rows(config, reader, flag, samples, report, line.rows, measured))
            yield from gathered("data", look_at_columns(config, flag, columns))
    except ValueError as error:
        yield Finding("error", "data", str(error))
    if isinstance(config, PPOConfig) and prompts:
        yield from gathered("reward", look_at_rewards(config, prompts, tokenizer))


def command_module(verb: str) -> ModuleType:
    return importlib.import_module(VERBS[verb][0])


def take_apart(words: Sequence[str]) -> Line:
    """Raises ValueError when there is no command in the line, or words stand before it that are no launcher's."""
    rest, own = own_flags(words, ("assume", "rows"))
    modules = {module: verb for verb, (module, _) in VERBS.items() if verb in COMMANDS}
    names = {name: verb for module, verb in modules.items() for name in (module, module.rpartition(".")[2], verb)}
    place = next((i for i, word in enumerate(rest) if word in names), None)
    if place is None or (place > 0 and os.path.basename(rest[0]) not in LAUNCHERS):
        raise ValueError(f"openrlhf check needs a command before its flags: one of {', '.join(COMMANDS)}.")
    try:
        most = int(own.get("rows", ROWS))
    except ValueError:
        most = 0
    if most < 1:
        raise ValueError(f"--rows {own['rows']!r} must be a number of at least 1.")
    return Line(names[rest[place]], rest[place + 1 :], _workers(rest[:place]), own.get("assume"), most)


def own_flags(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words without the flags ``names``, and the values of these, wherever they stand. Raises ValueError when one
    has no value."""
    rest: list[str] = []
    own: dict[str, str] = {}
    waiting: str | None = None
    for word in words:
        name, equals, value = word.partition("=")
        if waiting is not None:
            own[waiting], waiting = word, None
        elif name[:2] == "--" and name[2:] in names:
            own, waiting = ({**own, name[2:]: value}, None) if equals else (own, name[2:])
        else:
            rest.append(word)
    if waiting is not None:
        raise ValueError(f"--{waiting} needs a value.")
    return rest, own


def _workers(launcher: Sequence[str]) -> int | None:
    """How many processes ``deepspeed`` or ``torchrun`` starts: as they are told, or one for each GPU that is here."""
    if not any(os.path.basename(word) in ("deepspeed", "torchrun") for word in launcher):
        return None
    given: dict[str, Any] = {}
    for word, after in zip(launcher, [*launcher[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        given[name] = value if equals else after
    each = next((int(given[name]) for name in PROCESSES if name in given and str(given[name]).isdigit()), None)
    machines = next((int(given[name]) for name in MACHINES if name in given and str(given[name]).isdigit()), 1)
    if each is None:
        from openrlhf.check.memory import gpus_here  # here, since it waits for torch

        cluster = gpus_here()
        each = 1 if cluster is None else cluster.per_node
    return each * machines


if __name__ == "__main__":
    main()
