"""Whatever a user types: a configuration, or a ValueError; never another error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf.config.commands import PPOConfig, SFTConfig, types
from openrlhf.config.parse import read

FEW = settings(
    max_examples=150, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
NAMES = sorted({*types(SFTConfig), *types(PPOConfig)})
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "-1", "1e999", "nan", "inf", "true", "null", "0x10", "--", "-", "1,2", "ppo", "\x00", "é"]),
)
FLAGS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4)


def answers(command: type, words: list[str]) -> None:
    with suppress(ValueError):
        read(command, words)


@pytest.mark.parametrize("command", [SFTConfig, PPOConfig])
@FEW
@given(flags=FLAGS, rest=st.lists(st.text(max_size=8), max_size=2))
def test_any_command_line(command: type, flags: list[tuple[str, str]], rest: list[str]) -> None:
    words = [word for name, value in flags for word in (f"--{name}", value)]
    answers(command, ["--pretrain", "m", "--dataset", "d", *words, *(word for word in rest if word not in ("-h",))])


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2), max_leaves=4
)


@FEW
@given(content=st.dictionaries(st.sampled_from(NAMES) | SCALARS, TREES, max_size=4))
def test_any_yaml_mapping(content: dict[object, object], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    answers(SFTConfig, ["--pretrain", "m", "--dataset", "d", "--config", str(tmp_path / "run.yaml")])


@FEW
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    answers(SFTConfig, ["--pretrain", "m", "--dataset", "d", "--config", str(tmp_path / "run.yaml")])
