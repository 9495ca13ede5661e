"""What becomes of the rows: how many are dropped or cut and why, how long they are, what share carries loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from transformers import PreTrainedTokenizerBase

from openrlhf.check.findings import Severity
from openrlhf.config.commands import (
    DPOConfig,
    KDConfig,
    KTOConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    SFTConfig,
    TrainCommand,
    flat,
)
from openrlhf.config.groups import DataConfig
from openrlhf.data.encode import token_ids
from openrlhf.data.load import load_rows
from openrlhf.data.reader import Reader
from openrlhf.data.report import DropReport, Tally
from openrlhf.data.rows import fill_template
from openrlhf.types import Sample

LISTED = 3  # row numbers of a kind
FIRST_WORDS = ("The", "1")  # of answers


def sources(config: TrainCommand) -> list[tuple[str, str, str, str | None]]:
    """Flag, names, split and shares of each data set of a run."""
    if isinstance(config, PPOConfig):
        own = config.prompts
        found = [("--prompt_data", own.prompt_data, own.prompt_split, own.prompt_data_probs)]
    else:
        data = _dataset(config)
        found = [("--dataset", *data)]
    evaluation = config.data.eval_dataset
    return found if evaluation is None else [*found, ("--eval_dataset", evaluation, config.data.eval_split, None)]


def read(
    config: TrainCommand, reader: Reader, flag: str, names: str, split: str, probs: str | None, most: int
) -> tuple[list[Sample], DropReport, list[str]]:
    """The samples of the first ``most`` rows of a data set, and its columns. Raises ValueError naming the flag and the
    row."""
    number = min(most, config.data.max_samples)
    rows = load_rows(names, split, probs, number, config.train.seed, flag, config.model.use_ms)
    return *reader.encode(rows, flag), rows.column_names


def look_at_rows(
    config: TrainCommand,
    reader: Reader,
    flag: str,
    samples: Sequence[Sample],
    report: DropReport,
    most: int,
    measured: bool = True,
) -> Iterator[tuple[Severity, str]]:
    """Not ``measured`` are samples of a tokenizer that stands in for the run's own."""
    lengths = [len(sample.tokens) for sample in samples]
    learnt = sum(int(sample.action_mask.sum()) for sample in samples)
    share = f", {learnt / sum(lengths):.0%} of them carry loss" if learnt else ""
    scope = f"the first {most} rows: " if report.kept + _count(report.dropped) == most else ""
    known = (
        f"{min(lengths)} to {max(lengths)} tokens, median {median(lengths):.0f}, {reader.limit_flag} is {reader.limit}"
        if measured
        else "how long they are was not measured, without the tokenizer of --pretrain"
    )
    yield "ok", f"{flag}: {scope}{report.kept} rows are used; {known}{share if measured else ''}"
    for verb, tallies in (("dropped", report.dropped), ("cut", report.shortened)):
        for kind, tally in tallies.items():
            yield "warning", f"{flag}: {_kind(kind, tally, verb)}"
    if isinstance(config, RMConfig | DPOConfig) and not config.data.apply_chat_template and not config.pairs.prompt_key:
        yield from _look_at_beginnings(flag, samples)
    if not scope and flag != "--eval_dataset":
        yield from _look_at_number(config, flag, report.kept)


def look_at_template(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Severity, str]]:
    """Whether a prompt is the same tokens alone, as a policy is asked, as it is with an answer behind it in a row."""
    if not data.input_template or data.apply_chat_template:
        return
    prompt = fill_template(data.input_template, "?")
    alone, *answered = token_ids(tokenizer, [prompt, *(prompt + word for word in FIRST_WORDS)])
    if any(tokens[: len(alone)] != alone for tokens in answered):
        yield (
            "warning",
            f"--input_template ends in {data.input_template[-1]!r}, which shares a token with the first word of an "
            "answer: training on answers and asking for them read other tokens; let it end in a line break wherever "
            "it is given",
        )


def look_at_columns(config: TrainCommand, flag: str, columns: Sequence[str]) -> Iterator[tuple[Severity, str]]:
    """Those that no flag names: instructions may come in two columns, of which one flag takes one."""
    read = {value for name, value in flat(config).items() if name.endswith("_key")} | {"datasource"}
    if isinstance(config, RMConfig):
        read.add("margin")
    if idle := [name for name in columns if name not in read]:
        yield "ok", f"{flag}: no flag names the columns {', '.join(idle)}, so they are not read"


def _look_at_beginnings(flag: str, samples: Sequence[Sample]) -> Iterator[tuple[Severity, str]]:
    """Whole texts have their prompt in common, so that pairs which differ at once have none."""
    pairs = list(zip(samples[::2], samples[1::2], strict=True))
    differ = sum(int(chosen.tokens[0]) != int(rejected.tokens[0]) for chosen, rejected in pairs)
    if 2 * differ > len(pairs):
        yield (
            "warning",
            f"{flag}: chosen and rejected of {differ} pairs differ from the first token on, so they hold no prompt and "
            "the model never sees one; name its column with --prompt_key",
        )


def _look_at_number(config: TrainCommand, flag: str, kept: int) -> Iterator[tuple[Severity, str]]:
    if isinstance(config, PPOConfig):
        wanted, name = config.rollout.rollout_batch_size, "--rollout_batch_size"
        episodes = config.rollout.num_episodes
    else:
        wanted, name, episodes = config.train.train_batch_size, "--train_batch_size", config.train.max_epochs
    if kept * episodes < wanted:
        yield "warning", f"{flag} has {kept} usable rows, fewer than one {name} {wanted}: there is a single small step"


def _kind(kind: str, tally: Tally, verb: str) -> str:
    rows = ", ".join(map(str, tally.rows[:LISTED])) + (", …" if tally.count > LISTED else "")
    number = f"{tally.count} rows are" if tally.count > 1 else "1 row is"
    way = "raise the limit or leave such rows out" if verb == "cut" or "max_len" in kind else "mend or remove them"
    return f"{number} {verb}: {kind} (row{'s' * (tally.count > 1)} {rows}; the first is {tally.example}); {way}"


def _count(tallies: Mapping[str, Tally]) -> int:
    return sum(tally.count for tally in tallies.values())


def _dataset(config: TrainCommand) -> tuple[str, str, str | None]:
    if isinstance(config, SFTConfig | KDConfig):
        own = config.dataset
        return own.dataset, own.dataset_split, own.dataset_probs
    if isinstance(config, KTOConfig):
        return config.unpaired.dataset, config.unpaired.dataset_split, config.unpaired.dataset_probs
    if isinstance(config, PRMConfig):
        return config.process.dataset, config.process.dataset_split, config.process.dataset_probs
    assert not isinstance(config, PPOConfig)
    return config.pairs.dataset, config.pairs.dataset_split, config.pairs.dataset_probs
