"""vLLM as a rollout engine. Ray-free: the cluster layer builds a `VLLMEngine` inside an actor and calls it from there.

vLLM is imported when an engine is built: it takes seconds, and wants the variables of `engine_environment` set before.
So importing this module costs nothing and needs no vLLM.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from packaging.version import Version
from torch import Tensor

from openrlhf.backends.vllm_store import TransferGroup
from openrlhf.rollout.engine import Completion, SamplingParams, params_of_each

MINIMUM_VLLM = Version("0.20")
CPU_CACHE_BYTES = 1024**3


def engine_environment(on_gpu: bool, tensor_parallel_size: int = 1) -> dict[str, str]:
    """Environment variables that the engine's process needs before it imports vLLM."""
    several = tensor_parallel_size > 1
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives and dies with its actor
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if on_gpu:
        return environment
    return environment | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if several else "0",  # vLLM's CPU workers need it for tensor parallelism
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines would all bind to the first cores
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }


def check_vllm_version(installed: str) -> None:
    """RuntimeError when vLLM is older than this project can use."""
    if Version(installed) < MINIMUM_VLLM:
        raise RuntimeError(f"vLLM {installed} is too old: install vllm>={MINIMUM_VLLM}.")


class VLLMEngine:
    """One engine; `RolloutEngine` in rollout/engine.py.

    ``log_probs`` are log-softmax(logits / temperature) in float32 (temperature 1 when greedy), as the trainer computes
    them; only with ``top_p`` below 1 they are renormalized over the kept tokens, from which vLLM samples.

    A response ends at the model's own end-of-text tokens, at ``stop_token_ids`` or with a text of ``stop_strings``; all
    stay in ``token_ids``.

    An ``interruptible`` engine keeps what it has sampled when ``interrupt`` is called, from another thread, during
    ``generate``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: Literal["bfloat16", "float32"],
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        enable_prefix_caching: bool = False,
        enable_sleep_mode: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        interruptible: bool = False,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError('vLLM is not installed: pip install "openrlhf[vllm]"') from error
        from vllm.platforms import current_platform

        check_vllm_version(vllm.__version__)
        on_cpu = current_platform.is_cpu()
        self._sleeps = enable_sleep_mode and not on_cpu  # there is no device memory to give back on CPU
        self._asleep = False
        self._half_loaded: int | None = None
        self.weight_version = 0
        self._interruptible = interruptible
        self._interrupted = threading.Event()
        self._numbers = itertools.count()
        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            distributed_executor_backend="mp" if tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=gpu_memory_utilization,
            # A prompt read in pieces rewinds its request's generator, which CPU generators cannot do.
            enable_chunked_prefill=False if on_cpu else None,
            kv_cache_memory_bytes=CPU_CACHE_BYTES if on_cpu else None,  # else vLLM claims that share of all memory
            enforce_eager=enforce_eager,
            enable_prefix_caching=enable_prefix_caching,
            enable_sleep_mode=self._sleeps,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            seed=seed,
            trust_remote_code=trust_remote_code,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="openrlhf.backends.vllm_worker.WeightWorker",
        )

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        """One completion a prompt, in order.

        With one ``params`` for all and a seed, prompt i of this call gets the seed `request_seed` (params.seed, i);
        whoever divides a rollout among engines passes parameters for each, with seeds numbered over the whole.

        Raises:
            RuntimeError: the engine sleeps, or an interrupted weight sync left it with a mixture of weights.
        """
        if self._asleep:
            raise RuntimeError("The engine sleeps: call wake() before generate().")
        if self._half_loaded is not None:
            raise RuntimeError(
                f"The engine holds a mixture of weights since the sync to version {self._half_loaded} was interrupted: "
                "connect a new weight transfer and sync again."
            )
        each = [_vllm_params(own, self._interruptible) for own in params_of_each(params, len(prompts))]
        engine = self._llm.llm_engine
        answers: dict[str, Completion] = {}
        try:
            for token_ids, own in zip(prompts, each, strict=True):
                number = str(next(self._numbers))
                answers[number] = Completion([], [], truncated=False, weight_versions=[], interrupted=True)
                engine.add_request(number, {"prompt_token_ids": token_ids}, own)
            while engine.has_unfinished_requests() and not self._interrupted.is_set():
                for output in engine.step():
                    self._add(output.outputs[0], answers[output.request_id])
        finally:
            engine.abort_request([number for number, answer in answers.items() if answer.interrupted])
        return list(answers.values())

    def interrupt(self) -> None:
        """Let ``generate`` return at once with what there is, now and until ``resume``."""
        self._interrupted.set()

    def resume(self) -> None:
        self._interrupted.clear()

    def init_weight_transfer(self, group: TransferGroup, first_worker: int) -> None:
        """Meet the trainer's `WeightSender`, which must be inside ``connect`` meanwhile.

        ``first_worker``: engine number × tensor-parallel size. TimeoutError if the trainer or an engine stays away.
        """
        self._llm.collective_rpc("join_weight_transfer", args=(asdict(group), first_worker))

    def receive_weights(self, version: int) -> None:
        """Take what the trainer's `WeightSender.send` sends meanwhile; then these weights are version ``version``.

        On any error the engine refuses to generate until a later sync succeeds.
        """
        self._replace("receive_sent_weights", version, version)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights handed over in memory (through Ray's object store, say): simple, and slow for large models."""
        self._replace("take_weights", list(weights), version)

    def sleep(self) -> None:
        """Give the GPU memory back: weights move to host memory, the key-value cache is dropped. Nothing on CPU."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _add(self, output: Any, answer: Completion) -> None:
        """What vLLM's ``CompletionOutput`` has that is new."""
        token_ids = list(output.token_ids)
        answer.token_ids += token_ids
        answer.log_probs += [at[token].logprob for token, at in zip(token_ids, output.logprobs, strict=True)]
        answer.weight_versions += [self.weight_version] * len(token_ids)
        answer.truncated = output.finish_reason == "length"
        answer.interrupted = output.finish_reason is None

    def _replace(self, method: str, argument: Any, version: int) -> None:
        if self._asleep:
            raise RuntimeError("The engine sleeps: call wake() before new weights arrive.")
        self._half_loaded = version
        self._llm.collective_rpc(method, args=(argument,))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached prefixes of the old weights: a request was still running.")
        self.weight_version = version
        self._half_loaded = None


def _vllm_params(params: SamplingParams, by_and_by: bool) -> Any:
    """``by_and_by``: each step tells its tokens, instead of the last one all of them, which costs a little less."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        max_tokens=params.max_new_tokens,
        stop_token_ids=list(params.stop_token_ids),
        stop=list(params.stop_strings),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        seed=params.seed,
        logprobs=0,  # of the sampled token alone
        detokenize=bool(params.stop_strings),
        output_kind=RequestOutputKind.DELTA if by_and_by else RequestOutputKind.FINAL_ONLY,
    )
