"""Commands with ``--lora_rank``: from files to an adapter that PEFT loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.cli import train_dpo, train_kto, train_ppo_ray, train_prm, train_rm, train_sft
from tests.recipes.helpers import column, metrics, run, write_rows

SFT_ROWS = [{"q": f"{i}", "a": word} for i, word in enumerate(["zero", "one", "two", "three"])]
PAIRS = [
    {"q": f"is {i} good? ", "chosen": "yes" + " sir" * (i % 3), "rejected": "no" + " way" * (i % 4)} for i in range(8)
]
ANSWERS = [{"q": f"is {i} good? ", "a": "yes" if i % 2 else "no", "good": i % 2} for i in range(8)]
STEPS = [{"q": f"{i}# {i + 1}#", "labels": ["+", "-"]} for i in range(8)]
DATA = {
    train_sft: (SFT_ROWS, {"input_key": "q", "output_key": "a", "input_template": "{}="}),
    train_rm: (PAIRS, {"prompt_key": "q"}),
    train_dpo: (PAIRS, {"prompt_key": "q", "beta": 0.5}),
    train_kto: (ANSWERS, {"input_key": "q", "output_key": "a", "label_key": "good", "beta": 0.5}),
}


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "pretrain": tiny_folder, "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 2, "max_epochs": 2,
        "learning_rate": 5e-3, "lora_rank": 8, "lora_alpha": 16, "save_path": tmp_path / "out",
    }  # fmt: skip


def of(command: Any, flags: dict[str, Any], tmp_path: Path, **more: Any) -> dict[str, Any]:
    rows, own = DATA[command]
    return {**flags, "dataset": write_rows(tmp_path / "rows.jsonl", rows), **own, **more}


@torch.no_grad()
def nll(model: Any, tokenizer: Any) -> float:
    """Mean −log π of the answers and their ends, by Transformers and PEFT alone."""
    values = []
    for row in SFT_ROWS:
        prompt = tokenizer(row["q"] + "=", add_special_tokens=False).input_ids
        ids = tokenizer(row["q"] + "=" + row["a"], add_special_tokens=False).input_ids
        ids.append(tokenizer.eos_token_id)
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values += [-table[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))]
    return sum(values) / len(values)


def test_sft_learns_by_an_adapter_of_its_own_folder(flags: dict[str, Any], tmp_path: Path) -> None:
    flags = of(train_sft, flags, tmp_path, max_epochs=40, learning_rate=2e-2, lr_scheduler="constant")
    folder = run(train_sft.main, flags | {"eval_dataset": flags["dataset"], "eval_steps": 40})
    losses = column(folder, "loss")
    assert losses[-1] < losses[0] - 0.5  # the frozen head of a random model cannot be surer
    assert not list(folder.glob("model*.safetensors")) and not list(folder.glob("*.bin"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(flags["pretrain"]), folder).eval()
    assert nll(model, AutoTokenizer.from_pretrained(folder)) == pytest.approx(column(folder, "eval_loss")[-1], abs=1e-5)


def test_a_reward_model_keeps_its_head_in_the_adapter(flags: dict[str, Any], tmp_path: Path) -> None:
    flags = of(train_rm, flags, tmp_path, max_epochs=15)
    folder = run(train_rm.main, flags | {"eval_dataset": flags["dataset"]})
    assert column(folder, "eval_accuracy")[-1] == 1.0
    base = AutoModelForSequenceClassification.from_pretrained(flags["pretrain"], num_labels=1)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [pair["q"] + pair[side] + tokenizer.eos_token for pair in PAIRS for side in ("chosen", "rejected")]
    with torch.no_grad():
        scores = torch.cat([model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits for t in texts])
    assert float(scores[0::2].mean()) == pytest.approx(column(folder, "eval_chosen_reward")[-1], abs=1e-5)
    assert float(scores[1::2].mean()) == pytest.approx(column(folder, "eval_rejected_reward")[-1], abs=1e-5)


@pytest.mark.parametrize("command", [train_sft, train_rm, train_dpo, train_kto])
def test_packing_micro_batches_and_recomputation_are_matters_of_speed(
    flags: dict[str, Any], tmp_path: Path, command: Any
) -> None:
    flags = of(command, flags, tmp_path)
    plain = metrics(run(command.main, flags))
    variants = [{"packing_samples": True, "micro_train_batch_size": 4}]
    variants += [{"gradient_checkpointing": True, "gradient_checkpointing_use_reentrant": True}]
    for number, variant in enumerate(variants):
        got = metrics(run(command.main, flags | variant | {"save_path": tmp_path / str(number)}))
        for a, b in zip(plain, got, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_the_reference_without_the_adapter_is_a_separate_copy(flags: dict[str, Any], tmp_path: Path) -> None:
    """The same rewards, losses and gradients, whether the reference has weights of its own or not."""
    flags = of(train_dpo, flags, tmp_path, max_epochs=6)
    shared = metrics(run(train_dpo.main, flags))
    copy = shutil.copytree(flags["pretrain"], tmp_path / "copy")
    separate = metrics(run(train_dpo.main, flags | {"ref_pretrain": copy, "save_path": tmp_path / "separate"}))
    assert shared[0]["reward_margin"] == 0.0
    assert shared[-1]["reward_margin"] > 0.1
    for a, b in zip(shared, separate, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_kto_starts_at_its_reference_and_leaves_it(flags: dict[str, Any], tmp_path: Path) -> None:
    folder = run(train_kto.main, of(train_kto, flags, tmp_path, max_epochs=15))
    assert column(folder, "loss")[0] == 0.5
    assert column(folder, "accuracy")[-1] == 1.0


def test_a_process_reward_model_is_an_adapter_of_a_language_model(flags: dict[str, Any], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", STEPS)
    steps = {"input_key": "q", "label_key": "labels", "placeholder_token": "#", "reward_tokens": ("+", "-")}
    folder = run(train_prm.main, flags | {"dataset": rows, **steps, "max_epochs": 10})
    assert column(folder, "accuracy")[-1] == 1.0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(flags["pretrain"]), folder)


def test_dropout_in_front_of_the_adapter_is_seeded(flags: dict[str, Any], tmp_path: Path) -> None:
    flags = of(train_sft, flags, tmp_path, max_epochs=4)
    dropped = [column(run(train_sft.main, flags | {"lora_dropout": 0.5}), "loss") for _ in range(2)]
    without = column(run(train_sft.main, flags), "loss")
    assert dropped[0] == dropped[1]
    assert dropped[0][0] == without[0]  # the adapter starts at 0
    assert dropped[0][-1] != without[-1]


def test_rl_in_one_process_samples_with_the_adapter_and_has_its_start_as_reference(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    answers = [q[len(p):] for q, p in zip(queries, prompts)]\n"
        "    return [sum(c.isalnum() for c in a) / max(1, len(a)) for a in answers]\n"
    )
    for name in ("max_len", "learning_rate", "max_epochs"):
        del flags[name]
    flags |= {
        "local": True, "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"say {i}:"} for i in range(4)]),
        "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 4, "n_samples_per_prompt": 32,
        "train_batch_size": 128, "micro_train_batch_size": 128, "generate_max_len": 4, "num_episodes": 8,
        "advantage_estimator": "rloo", "actor_learning_rate": 1e-2, "target_modules": ("lm_head", "v_proj", "o_proj"),
        "lr_scheduler": "constant", "init_kl_coef": 1e-3,
    }  # fmt: skip
    folder = run(train_ppo_ray.main, flags)
    assert column(folder, "kl")[0] == 0.0
    assert column(folder, "kl")[-1] != 0.0
    assert max(column(folder, "engine_log_prob_diff")) < 1e-5
    assert column(folder, "reward")[-1] > column(folder, "reward")[0] + 0.1
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(flags["pretrain"]), folder)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("command", [train_sft, train_dpo])
def test_weights_in_four_bits_learn_by_an_adapter(
    flags: dict[str, Any], tmp_path: Path, command: Any, bf16: bool
) -> None:
    pytest.importorskip("bitsandbytes")
    flags = of(command, flags, tmp_path, load_in_4bit=True, max_epochs=8)
    folder = run(command.main, flags | ({"bf16": True} if bf16 else {}))
    losses = column(folder, "loss")
    assert losses[-1] < losses[0] - 0.1
    if command is train_dpo:
        assert column(folder, "reward_margin")[0] == 0.0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(flags["pretrain"]), folder)
