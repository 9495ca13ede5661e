"""A real vLLM engine in a process of its own, this process as the trainer, transformers in float32 as the reference.

Run as a script, this file is the engine's process: it answers method calls that arrive over a socket.
"""

from __future__ import annotations

import multiprocessing.connection as connection
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from openrlhf.backends.vllm import VLLMEngine, check_vllm_version, engine_environment
from openrlhf.backends.vllm_store import SyncBackend, TransferGroup
from openrlhf.backends.vllm_transfer import WeightReceiver, WeightSender
from openrlhf.rollout.engine import Completion, SamplingParams, params_of_each

pytestmark = pytest.mark.cluster

KEY = b"test"
EOS = 0
CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46], [9], [100, 3, 100, 3], [77, 78]]
WORDS = ["<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
SMALL_BUCKET = 40_000  # bytes: several buckets, layers cut in two, and tensors larger than a bucket


def serve(socket: str) -> None:
    with connection.Client(socket, authkey=KEY) as trainer:
        engine: VLLMEngine | None = None
        while (call := trainer.recv()) is not None:
            method, args, kwargs = call
            try:
                if method == "start":
                    engine, answer = VLLMEngine(*args, **kwargs), None
                else:
                    answer = getattr(engine, method)(*args, **kwargs)
                trainer.send((answer, None))
            except Exception as error:  # noqa: BLE001  (it goes to the caller)
                trainer.send((None, error))


class RemoteEngine:
    """Calls a `VLLMEngine` in the other process and counts the calls."""

    def __init__(self, link: connection.Connection) -> None:
        self.link = link
        self.calls: list[str] = []

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(method)
        self.link.send((method, args, kwargs))
        if not self.link.poll(120):
            raise TimeoutError(f"the engine's process did not answer {method} within 120 s")
        answer, error = self.link.recv()
        if error is not None:
            raise error
        return answer


def random_model(seed: int, tied: bool = False) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=EOS, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(seed=1)


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(WORDS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


@pytest.fixture(scope="module")
def engine(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteEngine]:
    folder = tmp_path_factory.mktemp("vllm")
    save(model, folder)
    environment = os.environ | engine_environment(on_gpu=False) | {"HF_HUB_OFFLINE": "1"}
    with connection.Listener(str(folder / "socket"), "AF_UNIX", authkey=KEY) as listener:
        process = subprocess.Popen([sys.executable, __file__, str(folder / "socket")], env=environment)
        try:
            with listener.accept() as link:
                remote = RemoteEngine(link)
                remote.call("start", str(folder), dtype="float32", enable_prefix_caching=True, max_model_len=64)
                yield remote
                link.send(None)
            process.wait(120)
        finally:
            process.kill()
            process.wait(120)


def connect(engine: RemoteEngine, backend: SyncBackend, timeout_s: float = 20.0) -> WeightSender:
    sender = WeightSender.host("127.0.0.1", 1, backend, "float32", CPU, timeout_s)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(engine.call, "init_weight_transfer", sender.group, 0)
        sender.connect()
        joined.result()
    return sender


def sync(engine: RemoteEngine, sender: WeightSender, weights: Any, version: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(engine.call, "receive_weights", version)
        try:
            sender.send(weights, version, SMALL_BUCKET)
        finally:
            received.result()


@torch.no_grad()
def reference_log_probs(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """log p(token) under softmax(logits / temperature), at the first position as at any other."""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def assert_sampled_from(model: Any, completions: list[Completion], temperature: float) -> None:
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = reference_log_probs(model, prompt, completion.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(completion.log_probs).double(), expected, atol=1e-4, rtol=0)


SAMPLED = SamplingParams(temperature=0.7, max_new_tokens=24, seed=3)


def test_greedy_tokens_are_those_of_transformers(engine: RemoteEngine, model: Any) -> None:
    completions = engine.call("generate", PROMPTS, SamplingParams(temperature=0.0, max_new_tokens=12))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = list(prompt)
        for _ in completion.token_ids:
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
        assert completion.token_ids == tokens[len(prompt) :]
        assert completion.truncated == (completion.token_ids[-1] != EOS)
        assert len(completion.token_ids) == 12 or not completion.truncated


def test_sampled_log_probs_are_those_at_the_temperature(engine: RemoteEngine, model: Any) -> None:
    assert_sampled_from(model, engine.call("generate", PROMPTS, SAMPLED), 0.7)


def test_a_stop_token_ends_the_response_and_stays_in_it(engine: RemoteEngine) -> None:
    free = engine.call("generate", PROMPTS[:1], SamplingParams(temperature=0.0, max_new_tokens=12))[0]
    stop = next(token for token in free.token_ids[1:] if token != free.token_ids[0])
    params = SamplingParams(temperature=0.0, max_new_tokens=12, stop_token_ids=(stop,))
    stopped = engine.call("generate", PROMPTS[:1], params)[0]
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert not stopped.truncated
    assert len(stopped.log_probs) == len(stopped.token_ids)


def test_a_stop_string_ends_its_own_response_and_stays_in_it(engine: RemoteEngine) -> None:
    """Tokens are bytes here; what is no byte of a letter is no part of the text of two letters that is looked for."""
    free = engine.call("generate", PROMPTS, SamplingParams(temperature=0.0, max_new_tokens=24))
    texts = ["".join(map(letter, answer.token_ids)) for answer in free]
    stop = next(t[k : k + 2] for t in texts for k in range(1, len(t) - 3) if t[k : k + 2].isalnum())
    params = SamplingParams(temperature=0.0, max_new_tokens=24, stop_strings=("never said", stop))
    stopped = engine.call("generate", PROMPTS, params)
    for whole, text, answer in zip(free, texts, stopped, strict=True):
        count = text.find(stop) + 2 if stop in text else len(text)
        assert answer.token_ids == whole.token_ids[:count]
        assert answer.truncated == (whole.truncated and stop not in text)
        assert len(answer.log_probs) == len(answer.weight_versions) == count


def letter(token: int) -> str:
    word = WORDS[token] if token < len(WORDS) else " "
    return word if word.isascii() and len(word) == 1 else " "


def test_samples_do_not_depend_on_how_prompts_are_divided(engine: RemoteEngine) -> None:
    together = engine.call("generate", PROMPTS, SAMPLED)
    apart = engine.call("generate", PROMPTS[3:], params_of_each(SAMPLED, len(PROMPTS))[3:])
    assert [c.token_ids for c in together[3:]] == [c.token_ids for c in apart]
    other = engine.call("generate", PROMPTS, SamplingParams(temperature=0.7, max_new_tokens=24, seed=4))
    assert [c.token_ids for c in other] != [c.token_ids for c in together]


def test_more_prompts_than_one_step_of_the_scheduler_holds(engine: RemoteEngine) -> None:
    """vLLM would read some of them in pieces, which its CPU build cannot do with a seed a request."""
    prompts = [[(7 * row + place) % 300 + 5 for place in range(60)] for row in range(160)]
    answers = engine.call("generate", prompts, SamplingParams(max_new_tokens=2, seed=1))
    assert len(answers) == len(prompts)


@pytest.mark.parametrize("backend", ["gloo", "ipc"])
def test_two_syncs_in_a_row_of_one_call_each(engine: RemoteEngine, backend: SyncBackend) -> None:
    sender = connect(engine, backend)
    for version, seed in ((1, 10), (2, 11)):
        trained = random_model(seed)
        engine.calls.clear()
        sync(engine, sender, trained.named_parameters(), version)
        assert engine.calls == ["receive_weights"]
        completions = engine.call("generate", PROMPTS, SAMPLED)
        assert_sampled_from(trained, completions, 0.7)
        assert [c.weight_versions for c in completions] == [[version] * len(c.token_ids) for c in completions]
    sender.close()


def test_weights_handed_over_in_memory(engine: RemoteEngine) -> None:
    trained = random_model(seed=12)
    engine.call("load_weights", [(name, p.detach()) for name, p in trained.named_parameters()], 7)
    assert_sampled_from(trained, engine.call("generate", PROMPTS, SAMPLED), 0.7)


def test_after_an_interrupted_sync_the_engine_refuses_until_the_next_one(engine: RemoteEngine) -> None:
    trained = random_model(seed=13)

    def breaks_off() -> Iterator[tuple[str, Tensor]]:
        for i, pair in enumerate(trained.named_parameters()):
            if i == 5:
                raise OSError("disk full")
            yield pair

    sender = connect(engine, "gloo")
    with pytest.raises(RuntimeError, match="The trainer stopped sending weight version 8: OSError: disk full"):
        sync(engine, sender, breaks_off(), 8)
    with pytest.raises(RuntimeError, match="mixture of weights since the sync to version 8"):
        engine.call("generate", PROMPTS, SAMPLED)
    with pytest.raises(RuntimeError, match="connect a new group"):
        sender.send(trained.named_parameters(), 9)

    sync(engine, connect(engine, "gloo"), trained.named_parameters(), 9)
    assert_sampled_from(trained, engine.call("generate", PROMPTS, SAMPLED), 0.7)


def test_a_missing_parameter_is_an_error(engine: RemoteEngine) -> None:
    trained = random_model(seed=14)
    absent = "model.layers.1.mlp.down_proj.weight"
    weights = [(name, parameter) for name, parameter in trained.named_parameters() if name != absent]
    with pytest.raises(ValueError, match=rf"no weights for 1 of .* {absent}") as failure:
        sync(engine, connect(engine, "gloo"), weights, 10)
    trainers_error = str(failure.value.__context__)
    assert trainers_error.startswith("Weight version 10 was not loaded. Engine worker 0: ValueError: The trainer sent")
    sync(engine, connect(engine, "gloo"), trained.named_parameters(), 11)
    assert_sampled_from(trained, engine.call("generate", PROMPTS, SAMPLED), 0.7)


def test_a_silent_trainer_is_named_when_the_limit_passes(engine: RemoteEngine) -> None:
    sender = connect(engine, "gloo", timeout_s=1.0)
    with pytest.raises(TimeoutError, match=r"Engine worker 0 waited for the trainer to send bucket 0 .*limit 1 s"):
        engine.call("receive_weights", 12)
    with pytest.raises(RuntimeError, match="mixture"):
        engine.call("generate", PROMPTS, SAMPLED)
    del sender  # the store dies with the trainer
    with pytest.raises(ConnectionError, match=r"Engine worker 0 waited for .* but the trainer's store is gone"):
        engine.call("receive_weights", 13)


def test_a_tied_output_head_follows_the_embedding(engine: RemoteEngine, tmp_path: Path) -> None:
    tied = random_model(seed=20, tied=True)
    save(tied, tmp_path)
    engine.call("start", str(tmp_path), dtype="float32", max_model_len=64)
    assert_sampled_from(tied, engine.call("generate", PROMPTS, SAMPLED), 0.7)
    trained = random_model(seed=21, tied=True)
    sync(engine, connect(engine, "gloo"), trained.named_parameters(), 1)
    assert_sampled_from(trained, engine.call("generate", PROMPTS, SAMPLED), 0.7)


@pytest.mark.parametrize("backend", ["gloo", "ipc"])
def test_a_silent_engine_is_named_when_the_limit_passes(backend: SyncBackend) -> None:
    sender = WeightSender.host("127.0.0.1", 1, backend, "float32", CPU, timeout_s=1.0)
    with ThreadPoolExecutor(1) as pool:
        receiver = pool.submit(WeightReceiver, sender.group, 0, CPU)
        sender.connect()
        receiver.result()
    with pytest.raises(TimeoutError, match=r"The trainer waited for the engines .*limit 1 s"):
        sender.send([("w", torch.ones(3))], 1)


@pytest.mark.parametrize("backend", ["gloo", "ipc"])
def test_an_engine_that_never_joins_is_named(backend: SyncBackend) -> None:
    sender = WeightSender.host("127.0.0.1", 2, backend, "float32", CPU, timeout_s=1.0)
    with pytest.raises(TimeoutError, match="The trainer waited for 2 engine workers to join"):
        sender.connect()


def test_buckets_carry_every_tensor_cast_to_the_engines_dtype() -> None:
    weights = [(f"w{i}", torch.randn(*shape)) for i, shape in enumerate([(3, 5), (50,), (1,), (2, 2, 2), (16,)])]
    sender = WeightSender.host("127.0.0.1", 2, "gloo", "bfloat16", CPU, timeout_s=10.0)

    def receive(group: TransferGroup, worker: int) -> list[list[tuple[str, Tensor]]]:
        receiver = WeightReceiver(group, worker, CPU)
        buckets = list(receiver.receive(5))
        receiver.acknowledge()
        return buckets

    with ThreadPoolExecutor(2) as pool:
        received = [pool.submit(receive, sender.group, worker) for worker in range(2)]
        sender.connect()
        sender.send(iter(weights), 5, bucket_bytes=48)
    for future in received:
        buckets = future.result()
        assert [[name for name, _ in bucket] for bucket in buckets] == [["w0"], ["w1"], ["w2", "w3"], ["w4"]]
        for name, tensor in (pair for bucket in buckets for pair in bucket):
            torch.testing.assert_close(tensor, dict(weights)[name].bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("version", ["0.9.2", "0.19.1"])
def test_an_old_vllm_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match=f"vLLM {version} is too old: install vllm>=0.20"):
        check_vllm_version(version)


@pytest.mark.parametrize("version", ["0.20.0", "0.26.0+cu129", "0.32.0", "1.0rc1"])
def test_a_new_vllm_is_accepted(version: str) -> None:
    check_vllm_version(version)


if __name__ == "__main__":
    serve(sys.argv[1])
