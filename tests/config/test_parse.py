"""Command line and YAML: what wins, what is written, and the sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openrlhf.config.commands import (
    Command,
    DPOConfig,
    KDConfig,
    KTOConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    SFTConfig,
)
from openrlhf.config.parse import flat, parse, parse_flags, read, write_yaml

SFT = ["--pretrain", "model", "--dataset", "rows.jsonl", "--output_key", "output"]
PAIRS = ["--pretrain", "model", "--dataset", "pairs.jsonl"]
KTO = ["--pretrain", "model", "--dataset", "labelled.jsonl", "--output_key", "output"]
KD = ["--pretrain", "model", "--dataset", "rows.jsonl", "--teacher_model", "teacher"]
PRM = ["--pretrain", "model", "--dataset", "steps.jsonl", "--placeholder_token", "ки"]
PPO = ["--pretrain", "model", "--prompt_data", "prompts.jsonl", "--reward_pretrain", "rm", "--local"]


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_flag_before_file_before_default(file: Any) -> None:
    config = read(SFTConfig, [*SFT, *file("seed: 7\nmax_len: 100\nbf16: true"), "--seed", "8"])
    assert (config.train.seed, config.dataset.max_len, config.train.max_epochs) == (8, 100, 2)
    assert config.model.bf16


def test_a_flag_turns_off_what_the_file_turns_on(file: Any) -> None:
    assert not read(SFTConfig, [*SFT, *file("bf16: true"), "--bf16", "false"]).model.bf16
    assert not read(SFTConfig, [*SFT, *file("bf16: true"), "--bf16=false"]).model.bf16


def test_required_flags_may_stand_in_the_file(file: Any) -> None:
    config = read(SFTConfig, file("pretrain: model\ndataset: rows.jsonl\napply_chat_template: true"))
    assert config.model.pretrain == "model"


def test_file_values_have_the_types_of_the_command_line(file: Any) -> None:
    text = "learning_rate: 5e-6\nadam_betas: [0.8, 0.9]\ninput_template: null\nl2: 1\nwandb_group: 2024-05-01\nseed: 3"
    config = read(SFTConfig, [*SFT, *file(text)])
    assert (config.fit.learning_rate, config.optim.adam_betas, config.optim.l2) == (5e-6, (0.8, 0.9), 1.0)
    assert isinstance(config.optim.l2, float)
    assert config.data.input_template is None  # where the command's default is not None
    assert config.log.wandb_group == "2024-05-01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train_batchsize: 8", ["train_batchsize", "--train_batch_size"]),
        ("train_batchsize:", ["train_batchsize", "--train_batch_size"]),
        ("train_batch_size: many", ["--train_batch_size", "'many'"]),
        ("train_batch_size: 8.5", ["--train_batch_size", "'8.5'"]),
        ("train_batch_size:", ["train_batch_size", "needs a value"]),
        ("bf16: 1", ["--bf16", "true or false"]),
        ("input_key: no", ["input_key", "quotes"]),
        ("adam_betas: 0.9", ["--adam_betas", "2"]),
        ("model:\n  bf16: true", ["--model.bf16", "no counterpart"]),
        ("input_key:\n  bf16: true", ["input_key", "flat"]),
        ("- bf16", ["one flag a line"]),
        ("bf16: [", ["not YAML"]),
    ],
)
def test_errors_name_the_file_and_the_flag(file: Any, text: str, words: list[str]) -> None:
    argv = file(text)
    with pytest.raises(ValueError, match="^--config") as error:
        read(SFTConfig, [*SFT, *argv])
    for word in [*words, argv[1]]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config: .*gone\.yaml cannot be read"):
        read(SFTConfig, [*SFT, "--config", str(tmp_path / "gone.yaml")])


CHANGED_SFT = [
    *["--input_template", "Q: {}\nA:", "--learning_rate", "1e-7", "--adam_betas", "0.5", "0.75", "--bf16"],
    *["--dataset_probs", "1.0", "--wandb_group", "12", "--input_key", "true", "--l2", "1e-30", "--local_rank=3"],
]
CHANGED_RM = [
    *["--loss", "logexp", "--compute_fp32_loss", "--prompt_key", "null", "--chosen_key", "0", "--rejected_key", "yes"],
    *["--value_head_prefix", "value", "--input_template", "Q: {}", "--learning_rate", "1e-7", "--max_len", "99"],
]
CHANGED_DPO = [
    *["--beta", "1e-3", "--label_smoothing", "0.1", "--nll_loss_coef", "2", "--ref_pretrain", "null", "--ref_offload"],
    *["--dataset_probs", "1.0", "--eval_dataset", "e.jsonl", "--eval_steps", "3", "--eval_split", "train"],
]
CHANGED_KTO = [
    *["--beta", "1e-3", "--desirable_loss_weight", "1.33", "--undesirable_loss_weight", "0", "--ref_offload"],
    *["--label_key", "score", "--input_template", "Q: {}", "--max_len", "99", "--micro_train_batch_size", "2"],
]
CHANGED_KD = ["--kd_coef", "1", "--teacher_offload", "--output_key", "null", "--dataset_probs", "1.0"]
CHANGED_PRM = ["--reward_tokens", "+", "-", "--label_key", "0", "--input_key", "yes", "--max_len", "99"]
CHANGED_PPO = [
    *["--reward_clip_range", "-1e-3", "inf", "--eps_clip_low_high", "0.2", "0.28", "--dual_clip", "3"],
    *["--label_key", "null", "--advantage_estimator", "rloo", "--n_samples_per_prompt", "4"],
]


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (SFTConfig, SFT),
        (SFTConfig, SFT + CHANGED_SFT),
        (RMConfig, PAIRS),
        (RMConfig, PAIRS + CHANGED_RM),
        (DPOConfig, PAIRS),
        (DPOConfig, PAIRS + CHANGED_DPO),
        (KTOConfig, KTO),
        (KTOConfig, KTO + CHANGED_KTO),
        (KDConfig, KD),
        (KDConfig, KD + CHANGED_KD),
        (PRMConfig, PRM),
        (PRMConfig, PRM + CHANGED_PRM),
        (PPOConfig, PPO),
        (PPOConfig, PPO + CHANGED_PPO),
    ],
)
def test_what_is_written_reads_back_equal(command: Any, argv: list[str], tmp_path: Path) -> None:
    config = read(command, argv)
    write_yaml(config, tmp_path / "new" / "run.yaml")
    assert read(command, ["--config", str(tmp_path / "new" / "run.yaml")]) == config
    assert yaml.safe_load((tmp_path / "new" / "run.yaml").read_text()).keys() == flat(config).keys()


def test_the_wandb_key_is_shown_nowhere(tmp_path: Path) -> None:
    config = read(SFTConfig, [*SFT, "--use_wandb", "canary-key"])
    write_yaml(config, tmp_path / "run.yaml")
    assert config.log.use_wandb == "canary-key"
    assert "canary-key" not in (tmp_path / "run.yaml").read_text() + repr(config) + str(flat(config))
    assert read(SFTConfig, ["--config", str(tmp_path / "run.yaml")]).log.use_wandb == "true"


def test_no_abbreviations() -> None:
    with pytest.raises(
        ValueError, match="--train_batch is not a flag of this command; did you mean --train_batch_size"
    ):
        read(SFTConfig, [*SFT, "--train_batch", "8"])


@pytest.mark.parametrize("wrong", ["--train-batch-size", "--train_batch_sze", "--train_batch_sze=8"])
def test_the_nearest_name(wrong: str) -> None:
    with pytest.raises(ValueError, match="did you mean .*--train_batch_size"):
        parse_flags(SFTConfig, [wrong, "8"])


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--seed", "x"], "--seed"),
        (["--seed"], "--seed"),
        (["--kl_estimator", "k4"], "--kl_estimator"),
        (["--adam_betas", "0.9"], "--adam_betas"),
        (["--bf16", "maybe"], "--bf16"),
        (["stray"], "'stray'"),
        (["--zzzzqqqq"], "--help"),
    ],
)
def test_a_bad_command_line_is_one_sentence_and_code_2(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(PPOConfig, [*PPO, *argv])
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert word in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_a_broken_rule_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(PPOConfig, [*PPO, "--top_p", "2"])
    assert stop.value.code == 2
    assert "--top_p" in capsys.readouterr().err


@pytest.mark.parametrize("command", [SFTConfig, RMConfig, DPOConfig, KTOConfig])
@pytest.mark.parametrize(
    ("argv", "missing"), [([], "--pretrain and --dataset"), (["--pretrain", "m"], "--dataset must be given")]
)
def test_required_flags(command: Any, argv: list[str], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        read(command, argv)


@pytest.mark.parametrize(
    ("command", "missing"), [(KDConfig, "--teacher_model must be given"), (PRMConfig, "--placeholder_token must be")]
)
def test_required_flags_of_one_command(command: Any, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        read(command, PAIRS)


def test_a_distilled_conversation_needs_no_answer_column(file: Any) -> None:
    """The one way to take back a default that is not None."""
    config = read(KDConfig, [*KD, "--apply_chat_template", *file("output_key: null")])
    assert config.dataset.output_key is None


def test_a_loss_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="--loss: invalid choice: 'hinge' .*sigmoid.*logexp"):
        read(RMConfig, [*PAIRS, "--loss", "hinge"])


def test_numbers_that_look_like_flags() -> None:
    assert parse_flags(PPOConfig, ["--reward_clip_range", "-inf", "-1.5e-3"]) == {
        "reward_clip_range": (-float("inf"), -0.0015)
    }


def test_the_launchers_rank_is_taken() -> None:
    assert read(SFTConfig, ["--local_rank=1", *SFT]).train.local_rank == 1


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("sft", read(SFTConfig, SFT)),
        ("rm", read(RMConfig, PAIRS)),
        ("dpo", read(DPOConfig, PAIRS)),
        ("kto", read(KTOConfig, KTO)),
        ("kd", read(KDConfig, KD)),
        ("prm", read(PRMConfig, PRM)),
        ("ppo", read(PPOConfig, PPO)),
    ],
)
def test_help_lists_every_flag_without_torch(verb: str, config: Command) -> None:
    code = (
        "import sys; from openrlhf.cli.main import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.splitlines()[-1] == "False False"
    for name in [*flat(config), "config"]:
        assert f"--{name} " in out
