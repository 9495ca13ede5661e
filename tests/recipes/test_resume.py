"""A run that dies at any moment and is started again ends where an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.cli import train_dpo, train_kd, train_kto, train_prm, train_rm, train_sft
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import column, free_port, launched, metrics, run, write_rows
from tests.recipes.in_turn import run_in_turn
from tests.recipes.killed import run_apart

# Seven examples in mini-batches of four: an epoch is a whole one and a smaller one, and step 3 ends inside an epoch.
ROWS = [{"q": f"{i}", "a": f"word {i} " * (1 + i % 3)} for i in range(7)]
PAIRS = [{"chosen": f"{i} yes" + " sir" * (i % 3), "rejected": f"{i} no" + " way" * (i % 4)} for i in range(7)]
LABELLED = [{"q": f"{i}?", "a": "yes" if i % 2 else "no", "label": i % 2} for i in range(7)]
STEPS = [{"input": f"{i}#a#", "label": ["+-"[i % 2], "+"]} for i in range(7)]
TEXT = {"input_key": "q", "output_key": "a", "input_template": "{}="}
MAINS = {
    "train_sft": train_sft.main, "train_rm": train_rm.main, "train_dpo": train_dpo.main, "train_kto": train_kto.main,
    "train_kd": train_kd.main, "train_prm": train_prm.main,
}  # fmt: skip
SAVES = {"save_steps": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, so that random numbers are drawn in every step."""
    folder = tmp_path_factory.mktemp("model")
    build_model(folder, vocab_size=len(build_tokenizer(folder)), hidden=32, heads=2, kv_heads=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    return folder


def command_flags(command: str, model: Path, folder: Path) -> dict[str, Any]:
    """Three epochs of two steps."""
    own: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "train_sft": (ROWS, TEXT),
        "train_rm": (PAIRS, {}),
        "train_dpo": (PAIRS, {}),
        "train_kto": (LABELLED, TEXT),
        "train_kd": (ROWS, {**TEXT, "teacher_model": model}),
        "train_prm": (STEPS, {"placeholder_token": "#", "reward_tokens": ("+", "-")}),
    }
    rows, flags = own[command]
    return {
        "pretrain": model, "dataset": write_rows(folder / "rows.jsonl", rows), **flags, "max_len": 64,
        "train_batch_size": 4, "micro_train_batch_size": 2, "max_epochs": 3, "learning_rate": 1e-3,
        "save_path": folder / "out", "ckpt_path": folder / "ckpt",
    }  # fmt: skip


@pytest.fixture
def sft(model: Path, tmp_path: Path) -> dict[str, Any]:
    return command_flags("train_sft", model, tmp_path)


def whole(command: str, flags: dict[str, Any]) -> Path:
    """The same run without interruption and without checkpoints."""
    return run(MAINS[command], flags | {"save_path": Path(flags["save_path"]).with_name("whole")})


def same(folder: Path, expected: Path) -> None:
    """The same weights to the bit, and each step once in the curve, with the same numbers."""
    assert metrics(folder) == metrics(expected)
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def step_line(number: int) -> dict[str, Any]:
    """Where to die: in step ``number``, after its optimizer step and before its line."""
    return {"at": "openrlhf.training.log:RunLog.step", "call": number}


@pytest.mark.slow
@pytest.mark.parametrize("command", MAINS)
def test_every_command_goes_on_after_a_kill(command: str, model: Path, tmp_path: Path) -> None:
    flags = command_flags(command, model, tmp_path)
    if command != "train_prm":
        flags |= {"packing_samples": True}
    assert run_apart(command, flags | SAVES, **step_line(5)) == -signal.SIGKILL
    assert [row["step"] for row in metrics(tmp_path / "out")] == [1, 2, 3, 4]
    assert run_apart(command, flags | SAVES | {"load_checkpoint": True}) == 0
    same(tmp_path / "out", whole(command, flags))


def test_dropout_draws_random_numbers(sft: dict[str, Any]) -> None:
    """Otherwise the tests here would not notice a lost random state."""
    first = column(run(train_sft.main, sft), "loss")
    plain = Path(sft["pretrain"]).with_name("plain")
    shutil.copytree(sft["pretrain"], plain, dirs_exist_ok=True)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    assert column(run(train_sft.main, sft | {"pretrain": plain}), "loss") != first


FILES = "openrlhf.training.checkpoint_files"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "call", "newest"),
    [
        ("openrlhf.training.log:RunLog.step", 2, None),  # before the first checkpoint
        ("openrlhf.training.checkpoint_part:write_tensors", 2, 3),  # the folder is made, its part is not written
        (f"{FILES}:publish", 2, 3),  # the second checkpoint is complete under its temporary name
        (f"{FILES}:_flush_folder", 5, 6),  # it has its name, the pointer is old
        (f"{FILES}:prune", 2, 6),
    ],
)
def test_a_kill_inside_a_checkpoint(sft: dict[str, Any], at: str, call: int, newest: int | None) -> None:
    """Two epochs more, so that there is a third checkpoint."""
    flags = sft | SAVES | {"max_epochs": 5}
    assert run_apart("train_sft", flags, at, call) == -signal.SIGKILL
    found = [path.name for path in sorted(flags["ckpt_path"].glob("global_step?"))]
    assert (found[-1:] or [None])[0] == (newest and f"global_step{newest}")
    assert run_apart("train_sft", flags | {"load_checkpoint": True}) == 0
    assert not list(flags["ckpt_path"].glob("*.tmp"))
    assert (flags["ckpt_path"] / "latest").read_text() == "global_step9\n"
    same(flags["save_path"], whole("train_sft", sft | {"max_epochs": 5}))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on(sft: dict[str, Any], number: int) -> None:
    assert run_apart("train_sft", sft | SAVES, **step_line(4), number=number) == 0
    shown = sft["save_path"].with_name("shown").read_text()
    name = signal.Signals(number).name
    assert f"stopped after step 4 ({name}): the same command with --load_checkpoint goes on from " in shown
    assert not (sft["save_path"] / "model.safetensors").exists()
    assert run_apart("train_sft", sft | SAVES | {"load_checkpoint": True}) == 0
    same(sft["save_path"], whole("train_sft", sft))


@pytest.mark.slow
def test_without_checkpoints_a_signal_ends_the_run_at_once(sft: dict[str, Any]) -> None:
    assert run_apart("train_sft", sft, **step_line(4), number=signal.SIGTERM) == -signal.SIGTERM


class Died(BaseException):
    """In place of SIGKILL where the test has to look inside."""


def dies(monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], step: int) -> None:
    """Run SFT in this process up to ``step``."""
    from openrlhf.training.log import RunLog

    original = RunLog.step

    def fatal(self: RunLog, at: int, values: dict[str, float]) -> None:
        original(self, at, values)
        if at == step:
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "step", fatal)
        with pytest.raises(Died):
            run(train_sft.main, flags)
    torch.manual_seed(1234)  # the next process knows nothing of this one's random numbers


@pytest.mark.slow
def test_an_adapter_and_mixed_data_go_on_exactly(
    sft: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of LoRA only the adapter is in the checkpoint; the base is read again."""
    more = write_rows(tmp_path / "more.jsonl", [{"q": f"{i}+{i}", "a": f"{2 * i}"} for i in range(5)])
    sft |= {"dataset": f"{sft['dataset']},{more}", "dataset_probs": "0.4,0.6", "lora_rank": 4, "lora_dropout": 0.1}
    dies(monkeypatch, sft | SAVES, 5)
    state = torch.load(sft["ckpt_path"] / "global_step3" / "rank00000.pt", weights_only=True)
    assert all("lora_" in name for name in state["pieces"]) and len(state["pieces"]) == 28
    run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    expected = whole("train_sft", sft)
    assert metrics(sft["save_path"]) == metrics(expected)
    weights = "adapter_model.safetensors"
    assert (sft["save_path"] / weights).read_bytes() == (expected / weights).read_bytes()


def damage(folder: Path, how: str) -> None:
    part = folder / "rank00000.pt"
    data = bytearray(part.read_bytes())
    if how == "truncated":
        part.write_bytes(data[:-100])
    elif how == "zero bytes":
        part.write_bytes(b"")
    elif how == "missing":
        part.unlink()
    elif how == "flipped bit":
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    else:
        manifest = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(manifest.replace('"step": 4', '"step": 3'))


@pytest.mark.parametrize("how", ["truncated", "zero bytes", "missing", "flipped bit", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    flags = sft | {"save_steps": 2}
    dies(monkeypatch, flags, 5)
    damage(flags["ckpt_path"] / "global_step4", how)
    capsys.readouterr()
    run(train_sft.main, flags | {"load_checkpoint": True})
    shown = capsys.readouterr()
    assert shown.err.count("PASSED OVER: the checkpoint ") == 1 and "global_step4 is damaged" in shown.err
    assert "going on after step 2 from " in shown.out
    same(flags["save_path"], whole("train_sft", sft))


def test_the_newest_is_found_whatever_the_pointer_says(sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dies(monkeypatch, sft | SAVES, 5)
    (sft["ckpt_path"] / "latest").write_text("global_step9\n")
    run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    assert (sft["ckpt_path"] / "latest").read_text() == "global_step6\n"
    same(sft["save_path"], whole("train_sft", sft))


def test_all_of_them_damaged_is_refused(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dies(monkeypatch, sft | SAVES, 5)
    damage(sft["ckpt_path"] / "global_step3", "truncated")
    with pytest.raises(SystemExit) as stop:
        run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    assert stop.value.code == 2
    assert "every checkpoint in " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 2e-3}, "--learning_rate (0.001 there, 0.002 here)"),
        ({"train_batch_size": 2}, "--train_batch_size (4 there, 2 here)"),
        ({"max_samples": 6}, "the rows of --dataset ('7 rows "),
        ({"seed": 5}, "--seed (42 there, 5 here)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(
    sft: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    named: str,
) -> None:
    dies(monkeypatch, sft | SAVES, 3 + 1)
    files = {path: path.read_bytes() for path in sft["save_path"].parent.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(train_sft.main, sft | SAVES | changed | {"load_checkpoint": True})
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert files == {path: path.read_bytes() for path in sft["save_path"].parent.rglob("*") if path.is_file()}


def test_rows_in_another_order_are_another_data_set(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dies(monkeypatch, sft | SAVES, 4)
    write_rows(sft["dataset"], ROWS[::-1])
    with pytest.raises(SystemExit):
        run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    assert "the rows of --dataset" in capsys.readouterr().err.splitlines()[-1]


def test_another_model_under_the_same_name_is_refused(
    sft: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sft["pretrain"] = shutil.copytree(model, tmp_path / "model")
    dies(monkeypatch, sft | SAVES, 4)
    build_model(sft["pretrain"], vocab_size=len(AutoTokenizer.from_pretrained(model)), hidden=64)
    with pytest.raises(SystemExit):
        run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    assert "is of another model: its hf.model.embed_tokens.weight has " in capsys.readouterr().err.splitlines()[-1]


def test_what_may_change_between_two_runs(sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """How often it saves and logs, the micro-batch, and where the same rows lie."""
    sft |= {"lr_scheduler": "constant"}
    dies(monkeypatch, sft | SAVES, 4)
    moved = tmp_path / "moved.jsonl"
    Path(sft["dataset"]).rename(moved)
    sft |= {"dataset": moved}
    expected = column(whole("train_sft", sft), "loss")
    changed = {"save_steps": 1, "max_ckpt_num": 9, "micro_train_batch_size": 4, "load_checkpoint": True}
    run(train_sft.main, sft | changed)
    assert column(sft["save_path"], "loss")[:3] == expected[:3]
    assert len(column(sft["save_path"], "loss")) == 6
    assert (sft["ckpt_path"] / "global_step4").exists()


def test_hugging_face_folders_are_written_and_pruned_with_their_step(sft: dict[str, Any]) -> None:
    run(train_sft.main, sft | {"save_steps": 2, "save_hf_ckpt": True, "max_ckpt_num": 2})
    names = {path.name for path in sft["ckpt_path"].iterdir()}
    assert names == {"global_step4", "global_step4_hf", "global_step6", "global_step6_hf", "latest"}
    trained = AutoModelForCausalLM.from_pretrained(sft["save_path"]).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(sft["ckpt_path"] / "global_step6_hf").state_dict().items():
        assert torch.equal(weight, trained[name])
    AutoTokenizer.from_pretrained(sft["ckpt_path"] / "global_step4_hf")


def test_only_hugging_face_folders(sft: dict[str, Any]) -> None:
    run(train_sft.main, sft | {"save_steps": 2, "save_hf_ckpt": True, "disable_ds_ckpt": True, "max_ckpt_num": 1})
    assert {path.name for path in sft["ckpt_path"].iterdir()} == {"global_step6_hf"}


def full_disk(monkeypatch: pytest.MonkeyPatch, failing: range) -> None:
    """The file system has no room for the parts of these checkpoints, counted from 1."""
    import errno

    from openrlhf.training import checkpoint_part

    write, calls = checkpoint_part.write_tensors, 0

    def refuse(path: Path, content: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls in failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint_part, "write_tensors", refuse)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, range(2, 4))
    run(train_sft.main, sft | {"save_steps": 2, "max_ckpt_num": 1, "max_epochs": 2})
    assert "no checkpoint of step 4 in --ckpt_path" in capsys.readouterr().err
    assert {path.name for path in sft["ckpt_path"].iterdir()} == {"global_step2", "latest"}
    same(sft["save_path"], whole("train_sft", sft | {"max_epochs": 2}))


@pytest.mark.parametrize("saves", [SAVES, {}], ids=["with a checkpoint", "without"])
def test_no_room_for_the_trained_model_is_a_sentence(
    sft: dict[str, Any], saves: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def refuse(self: PreTrainedModel, folder: Path, **how: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuse)
    with pytest.raises(SystemExit) as stop:
        run(train_sft.main, sft | {"max_epochs": 1} | saves | ({"save_steps": 2} if saves else {}))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith(
        f"--save_path {sft['save_path']} did not take the trained model: No space left on device"
    )
    goes_on = f"The same command with --load_checkpoint goes on from {sft['ckpt_path']}/global_step2."
    assert sentence.endswith(goes_on if saves else "to go on from: --save_steps writes them.")


def test_three_failures_in_a_row_end_the_run(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, range(2, 9))
    with pytest.raises(SystemExit) as stop:
        run(train_sft.main, sft | {"save_steps": 1})
    assert stop.value.code == 2
    shown = capsys.readouterr().err.splitlines()
    assert sum("No space left on device" in line for line in shown) == 3
    assert "took none of the last 3 checkpoints" in shown[-1]
    assert len(metrics(sft["save_path"])) == 4
    assert {path.name for path in sft["ckpt_path"].iterdir()} == {"global_step1", "latest"}


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    sft: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run(train_sft.main, sft | SAVES | {"ckpt_path": tmp_path / "file" / "ckpt", "pretrain": "/nowhere/model"})
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"--ckpt_path {tmp_path}/file/ckpt cannot be written (")


def test_no_checkpoint_yet_starts_from_the_beginning(sft: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(train_sft.main, sft | {"load_checkpoint": True})
    assert "there is no checkpoint in " in capsys.readouterr().out
    same(sft["save_path"], whole("train_sft", sft))


def test_a_finished_run_only_writes_its_model_again(sft: dict[str, Any]) -> None:
    run(train_sft.main, sft | SAVES)
    before = (sft["save_path"] / "model.safetensors").read_bytes()
    (sft["save_path"] / "model.safetensors").unlink()
    run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    assert (sft["save_path"] / "model.safetensors").read_bytes() == before
    assert len(metrics(sft["save_path"])) == 6


# What DeepSpeed has: its own optimizer at each stage, another one in bf16 at stages 0 and 1.
SHARDED = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "stage 1 in bf16": {"zero_stage": 1, "bf16": True},
    "stage 3 in bf16": {"zero_stage": 3, "bf16": True},
    "stage 3 offloaded": {"zero_stage": 3, "adam_offload": True},
    "ring": {"zero_stage": 2, "ring_attn_size": 2, "packing_samples": True},
    # The last one, since DeepSpeed keeps the tensor-parallel groups of a process.
    "tensor parallel": {"zero_stage": 1, "ds_tensor_parallel_size": 2, "bf16": True},
}


@pytest.fixture(scope="module")
def two_ranks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each of ``SHARDED`` the whole run, the one that died and went on, and one that goes on from one process."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("ranks")
    plain = shutil.copytree(model, root / "model")  # without dropout: it is drawn from one generator a process
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    (root / "alone").mkdir()
    alone = command_flags("train_sft", plain, root / "alone") | SAVES
    run_in_turn(
        [
            {"flags": alone, "dies": 5},
            {"flags": alone | {"save_path": root / "alone" / "whole", "save_steps": -1}, "dies": None},
        ]
    )
    runs: list[dict[str, Any]] = []
    (root / "stopped").mkdir()
    common = command_flags("train_sft", model, root / "stopped") | SAVES
    runs += [
        {"flags": common, "dies": None, "stops": 4},
        {"flags": common | {"load_checkpoint": True}, "dies": None},
    ]
    for stage in (0, 1, 2, 3):
        more = {"save_path": root / f"from one to stage {stage}", "zero_stage": stage, "save_steps": -1}
        runs.append({"flags": alone | more | {"load_checkpoint": True, "use_ds_universal_ckpt": True}, "dies": None})
        here = root / f"to one from stage {stage}"
        common = alone | {"save_path": here / "out", "ckpt_path": here / "ckpt", "zero_stage": stage}
        runs.append({"flags": common, "dies": 5})
    for name, flags in SHARDED.items():
        (root / name).mkdir()
        common = command_flags("train_sft", model, root / name) | flags
        runs += [
            {"flags": common | {"save_path": root / name / "whole"}, "dies": None},
            {"flags": common | SAVES, "dies": 5},
            {"flags": common | SAVES | {"load_checkpoint": True}, "dies": None},
        ]
    (root / "plan.json").write_text(json.dumps(runs, default=str))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    here = Path(__file__)
    launched([*start, str(here.with_name("in_turn.py")), str(root / "plan.json")], PYTHONPATH=str(here.parents[2]))
    return root


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", SHARDED)
def test_two_ranks_go_on_after_a_kill(two_ranks: Path, name: str) -> None:
    assert (two_ranks / name / "ckpt" / "global_step3" / "rank00001.pt").exists()
    assert len(metrics(two_ranks / name / "out")) == 6
    same(two_ranks / name / "out", two_ranks / name / "whole")


@pytest.mark.slow
@pytest.mark.cluster
def test_all_ranks_stop_after_the_same_step_when_one_gets_a_signal(two_ranks: Path) -> None:
    names = {path.name for path in (two_ranks / "stopped" / "ckpt").iterdir()}
    assert names == {"global_step3", "global_step4", "global_step6", "latest"}
    same(two_ranks / "stopped" / "out", two_ranks / "stage 2" / "whole")


@pytest.mark.slow
@pytest.mark.cluster
def test_tensor_parallel_parts_are_for_as_many(
    two_ranks: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = command_flags("train_sft", model, tmp_path) | {"ckpt_path": two_ranks / "tensor parallel" / "ckpt"}
    with pytest.raises(SystemExit):
        run(train_sft.main, flags | {"bf16": True, "load_checkpoint": True, "use_ds_universal_ckpt": True})
    assert "holds parts of --ds_tensor_parallel_size 2, which one of 1 cannot use" in capsys.readouterr().err


def close(folder: Path, expected: Path) -> None:
    """To rounding, which another number of ranks changes."""
    for got, wanted in zip(metrics(folder), metrics(expected)[-len(metrics(folder)) :], strict=True):
        assert got == pytest.approx(wanted, rel=2e-3, abs=1e-6)
    assert column(folder, "loss") == pytest.approx(column(expected, "loss")[-len(column(folder, "loss")) :], rel=1e-5)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_go_on_from_one_process(two_ranks: Path, stage: int) -> None:
    """The log has what the two ranks did: steps 4 to 6."""
    assert column(two_ranks / f"from one to stage {stage}", "step") == [4, 5, 6]
    close(two_ranks / f"from one to stage {stage}", two_ranks / "alone" / "whole")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_process_goes_on_from_two_ranks(
    two_ranks: Path, model: Path, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    here = two_ranks / f"to one from stage {stage}"
    flags = command_flags("train_sft", two_ranks / "model", two_ranks / "alone") | {
        "save_path": here / "out", "ckpt_path": here / "ckpt", "load_checkpoint": True
    }  # fmt: skip
    with pytest.raises(SystemExit):
        run(train_sft.main, flags)
    assert "was written by 2 processes at ZeRO stage" in capsys.readouterr().err
    run(train_sft.main, flags | {"use_ds_universal_ckpt": True})
    assert column(here / "out", "step") == [1, 2, 3, 4, 5, 6]
    close(here / "out", two_ranks / "alone" / "whole")
