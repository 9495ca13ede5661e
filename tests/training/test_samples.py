"""Which samples are stored, how much of the disk they take, and that a disk that refuses ends nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.config.commands import PPOConfig
from openrlhf.config.groups import SampleConfig
from openrlhf.training import samples as module
from openrlhf.training.sample_file import StoredStep, read_step, step_path, stored_steps, write_step
from openrlhf.training.samples import MB, SampleStore, prune, turns
from openrlhf.types import Prompt, Sample, collate
from tests.inspect.runs import sample
from tests.training.test_ppo import config_of


class Characters:
    """A tokenizer whose tokens are characters."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, tokens))


def store_of(folder: Path, done: int = 0, **given: Any) -> SampleStore:
    config: PPOConfig = config_of(advantage_estimator="group_norm", init_kl_coef=0, max_epochs=1, train_batch_size=8)
    return SampleStore(folder, replace(config, samples=SampleConfig(**given)), Characters(), done)


PROMPTS = [Prompt(100 + i, f"q{i}", [113]) for i in range(6)]


def rollout(groups: int = 6, each: int = 4) -> list[Sample]:
    return [
        Sample(
            torch.tensor([113, 97 + k]),
            torch.tensor([False, True]),
            torch.zeros(2),
            group=g,
            reward=float(k),
            weight_versions=torch.tensor([0, 3]),
        )
        for g in range(groups)
        for k in range(each)
    ]


def write(store: SampleStore, step: int, rows: list[int] | None = None) -> None:
    made = rollout()
    rows = store.choose(PROMPTS, made) if rows is None else rows
    batch = collate(made, 0)
    part = batch.select(rows).fill(advantages=torch.ones(len(rows), 2), returns=torch.ones(len(rows), 2))
    assert batch.rewards is not None
    store.write(step, rows, part, made, PROMPTS, {"function": batch.rewards}, batch.rewards, 0.0)


@pytest.mark.parametrize(("limit", "stored"), [(-1, 24), (0, 0), (1, 4), (4, 4), (11, 8), (12, 12), (64, 24)])
def test_whole_groups_are_chosen(tmp_path: Path, limit: int, stored: int) -> None:
    samples = rollout()
    rows = store_of(tmp_path, samples_per_step=limit).choose(PROMPTS, samples)
    assert len(rows) == stored and rows == sorted(set(rows))
    chosen = {samples[row].group for row in rows}
    assert rows == [row for row, s in enumerate(samples) if s.group in chosen]


def test_the_same_prompts_are_chosen_wherever_they_stand(tmp_path: Path) -> None:
    store = store_of(tmp_path, samples_per_step=8)

    def ids(prompts: list[Prompt]) -> set[int]:
        samples = rollout()
        return {prompts[samples[row].group].id for row in store.choose(prompts, samples)}

    assert ids(PROMPTS) == ids(PROMPTS[::-1]) == ids(PROMPTS[3:] + PROMPTS[:3])


def test_a_stored_step_has_the_rows_that_were_chosen(tmp_path: Path) -> None:
    store = store_of(tmp_path, samples_per_step=-1)
    write(store, 3, rows=[4, 5, 6, 7])
    store.close()
    step = read_step(step_path(tmp_path / "samples", 3))
    assert (step.rows, [s.row for s in step.samples]) == (24, [4, 5, 6, 7])
    assert [s.prompt_id for s in step.samples] == [101] * 4
    assert [s.outcome for s in step.samples] == [s.parts["function"] for s in step.samples] == [0, 1, 2, 3]
    assert [turn.text for turn in step.samples[2].turns] == ["q", "c"]
    assert step.vocabulary[ord("q")] == "q"
    assert step.samples[0].per_token["advantages"].tolist() == [0, 1]  # 0 outside the action mask


def test_turns_alternate_between_the_policy_and_the_rest() -> None:
    mask = torch.tensor([False, False, True, True, False, True])
    made = list(turns(Sample(torch.tensor([ord(c) for c in "pqabTc"]), mask), Characters()))
    assert [(turn.policy, turn.text) for turn in made] == [(False, "pq"), (True, "ab"), (False, "T"), (True, "c")]


def test_the_oldest_steps_go_when_there_is_no_room(tmp_path: Path) -> None:
    for step in range(1, 6):
        write_step(step_path(tmp_path, step), StoredStep(step, 1, 0.0, [sample(0)]))
    size = step_path(tmp_path, 1).stat().st_size
    prune(tmp_path, 10 * size / MB)
    assert stored_steps(tmp_path) == [1, 2, 3, 4, 5]
    prune(tmp_path, 2.5 * size / MB)
    assert stored_steps(tmp_path) == [4, 5]
    with pytest.raises(ValueError, match="raise --samples_max_mb or lower --samples_per_step"):
        prune(tmp_path, 0.5 * size / MB)
    assert stored_steps(tmp_path) == [4]  # the one that is too large is the one that goes


def test_what_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, step: StoredStep) -> None:
        raise OSError(28, "No space left on device")

    store = store_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_step", full)
        for step in (1, 2, 3):
            write(store, step)
        store._behind()
    write(store, 4)  # there is room again
    store.close()
    assert stored_steps(tmp_path / "samples") == [4]
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    store = store_of(tmp_path / "out")
    write(store, 1)
    store.close()
    assert "samples of a step were not written" in capsys.readouterr().out


def test_a_second_run_moves_the_samples_of_the_first_aside(tmp_path: Path) -> None:
    for _ in range(2):
        store = store_of(tmp_path)
        write(store, 1)
        store.close()
    assert len(list(tmp_path.glob("samples-*/step_000001.parquet"))) == 1
    assert stored_steps(tmp_path / "samples") == [1]


def test_a_run_that_goes_on_forgets_the_steps_it_makes_again(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for step in (1, 2, 3, 4):
        write(store, step)
    store.close()
    store_of(tmp_path, done=2).close()
    assert stored_steps(tmp_path / "samples") == [1, 2]
