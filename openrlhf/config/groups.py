"""Every flag of a command, declared once: a field is a flag of that name, with its type; ``flag`` gives its default.

Groups are nested for the reader (``config.algorithm.eps_clip``) and flat for the user (``--eps_clip``). Defaults that
differ by command stand in ``commands.py``; what may not be combined stands in ``rules/``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def flag(default: Any, help: str, secret: bool = False) -> Any:
    """A flag that may be left out. A secret one is never shown."""
    return field(default=default, repr=not secret, metadata={"help": help, "secret": secret})


def required(help: str) -> Any:
    """A flag that must be given."""
    return field(metadata={"help": help, "secret": False})


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    pretrain: str = required("model: a Hugging Face folder or hub name")
    bf16: bool = flag(False, "compute in bfloat16")
    flash_attn: bool = flag(False, "use FlashAttention 2")
    packing_samples: bool = flag(False, "lay the samples of a micro-batch end to end instead of padding them")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass to save memory")
    gradient_checkpointing_use_reentrant: bool = flag(False, "use the reentrant form of gradient checkpointing")
    use_liger_kernel: bool = flag(False, "use the Liger kernels")
    load_in_4bit: bool = flag(False, "load the weights in 4 bits (QLoRA)")
    lora_rank: int = flag(0, "rank of the LoRA adapters; 0 trains the whole model")
    lora_alpha: int = flag(16, "scale of the LoRA adapters")
    lora_dropout: float = flag(0.0, "dropout in front of the LoRA adapters")
    target_modules: tuple[str, ...] = flag(("all-linear",), "modules that get a LoRA adapter")
    aux_loss_coef: float = flag(0.0, "weight of the load-balancing loss of a mixture of experts")
    ring_attn_size: int = flag(1, "GPUs that share one packed sequence (ring attention)")
    ring_head_stride: int = flag(1, "key-value heads that travel together around the ring")
    disable_fast_tokenizer: bool = flag(False, "use the slow tokenizer")
    tokenizer_chat_template: str | None = flag(None, "chat template (Jinja text) instead of the tokenizer's own")
    value_head_prefix: str = flag("score", "name of the score head in a reward model or critic")
    trust_remote_code: bool = flag(False, "run code that comes with a model folder")
    use_ms: bool = flag(False, "take models and data from ModelScope")


@dataclass(frozen=True)
class DataConfig:
    """Data"""

    eval_dataset: str | None = flag(None, "evaluation data: files, folders or hub names, separated by commas")
    eval_split: str = flag("train", "split of the evaluation data")
    max_samples: int = flag(100_000_000, "use at most this many rows")
    input_key: str = flag("input", "column of the prompt, the conversation or the whole text")
    input_template: str | None = flag(None, "text around the prompt, which takes the place of {}")
    apply_chat_template: bool = flag(False, "write prompts and conversations with the tokenizer's chat template")
    strict_data: bool = flag(False, "end with an error where a row would be left out or cut")
    preview: int = flag(0, "show this many rows as the model would meet them, then end; 0 trains")


@dataclass(frozen=True)
class DatasetConfig:
    """Data set"""

    dataset: str = required("rows: files, folders or hub names, separated by commas")
    dataset_probs: str | None = flag(None, "share of each part of --dataset, as in 0.3,0.7; they sum to 1")
    dataset_split: str = flag("train", "split of the rows")
    train_split: str = flag("train", "kept so that old command lines are understood; use --dataset_split")
    output_key: str | None = flag(None, "column of the answer")
    max_len: int = flag(2048, "longest sample in tokens; longer ones are cut")
    multiturn: bool = flag(False, "learn every assistant turn of a conversation, not only the last")
    pretrain_mode: bool = flag(False, "learn every token of the text in --input_key")


@dataclass(frozen=True)
class PairConfig:
    """Training pairs"""

    dataset: str = required("training pairs: files, folders or hub names, separated by commas")
    dataset_probs: str | None = flag(None, "share of each part of --dataset, as in 0.3,0.7; they sum to 1")
    dataset_split: str = flag("train", "split of the training pairs")
    max_len: int = flag(512, "longest prompt and answer together, in tokens; longer ones are cut")
    prompt_key: str | None = flag(None, "column of the prompt; without it the prompt is part of both answers")
    chosen_key: str = flag("chosen", "column of the better answer or conversation")
    rejected_key: str = flag("rejected", "column of the worse answer or conversation")


@dataclass(frozen=True)
class UnpairedConfig:
    """Labelled answers"""

    dataset: str = required("labelled answers: files, folders or hub names, separated by commas")
    dataset_probs: str | None = flag(None, "share of each part of --dataset, as in 0.3,0.7; they sum to 1")
    dataset_split: str = flag("train", "split of the labelled answers")
    max_len: int = flag(2048, "longest prompt and answer together, in tokens; longer ones are cut")
    output_key: str | None = flag(None, "column of the answer; without it the answer ends the conversation")
    label_key: str = flag("label", "column that says whether the answer is desirable: 1 or 0")


@dataclass(frozen=True)
class ProcessConfig:
    """Step labels"""

    dataset: str = required("solutions with labelled steps: files, folders or hub names, separated by commas")
    placeholder_token: str = required("token that stands after each step, where its label is learnt")
    dataset_probs: str | None = flag(None, "share of each part of --dataset, as in 0.3,0.7; they sum to 1")
    dataset_split: str = flag("train", "split of the solutions")
    max_len: int = flag(2048, "longest solution in tokens; longer ones are cut")
    label_key: str = flag("label", "column of the labels, one for each step: a token, or a probability")
    reward_tokens: tuple[str, ...] | None = flag(
        None, "tokens that a label may be, the positive one first; without them the whole vocabulary"
    )


@dataclass(frozen=True)
class PromptConfig:
    """Prompts"""

    prompt_data: str = required("prompts: files, folders or hub names, separated by commas")
    prompt_data_probs: str | None = flag(None, "share of each part of --prompt_data, as in 0.3,0.7; they sum to 1")
    prompt_split: str = flag("train", "split of the prompts")
    label_key: str | None = flag(None, "column handed to the reward function as label")
    prompt_max_len: int = flag(1024, "longest prompt in tokens; of longer ones the end is kept")
    max_len: int | None = flag(None, "longest prompt and response together, in tokens")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser"""

    adam_betas: tuple[float, float] = flag((0.9, 0.95), "decay of AdamW's two averages")
    l2: float = flag(0.0, "weight decay")
    max_norm: float = flag(1.0, "clip the gradient to this norm; 0 never clips")
    lr_scheduler: str = flag("cosine_with_min_lr", "shape of the learning rate, a name of transformers' schedulers")
    lr_warmup_ratio: float = flag(0.03, "share of the steps in which the learning rate rises")


@dataclass(frozen=True)
class TrainConfig:
    """Training"""

    train_batch_size: int = flag(128, "samples, or pairs, in one optimiser step, over all GPUs")
    micro_train_batch_size: int = flag(8, "samples, or pairs, in one forward pass of one GPU")
    use_dynamic_batch: bool = flag(False, "fill forward passes up to a number of tokens instead of samples")
    train_max_tokens_per_gpu: int = flag(
        16384, "tokens in one forward pass of one GPU with --use_dynamic_batch; a longer sample is alone in it"
    )
    max_epochs: int = flag(1, "passes over the data; in RL over each rollout batch")
    max_skipped_steps: int = flag(
        5, "end the run after so many optimiser steps in a row whose loss or gradient was not finite"
    )
    seed: int = flag(42, "seed of everything random")
    full_determinism: bool = flag(False, "use only operations that give the same bits every time")
    local_rank: int = flag(-1, "set by the DeepSpeed launcher")


@dataclass(frozen=True)
class FitConfig:
    """Supervised training"""

    learning_rate: float = flag(5e-6, "highest learning rate")


@dataclass(frozen=True)
class RewardTrainConfig:
    """Reward model"""

    loss: Literal["sigmoid", "logexp"] = flag(
        "sigmoid", "-log σ(chosen - rejected) of the two scores, or the same written as log(1 + exp(rejected - chosen))"
    )
    margin_loss: bool = flag(False, "take the number in the column margin off the difference of the two scores")
    compute_fp32_loss: bool = flag(False, "take the loss of the scores in float32")


@dataclass(frozen=True)
class PreferenceConfig:
    """Preference loss"""

    beta: float = flag(0.1, "weight of the reference: the larger, the closer the model stays to it")
    ipo: bool = flag(False, "use the squared loss of IPO instead of DPO's")
    label_smoothing: float = flag(0.0, "share of pairs taken to be labelled the wrong way round (cDPO)")
    nll_loss_coef: float = flag(0.0, "weight of the next-token loss on the chosen answer")
    ref_pretrain: str | None = flag(None, "reference: a Hugging Face folder or hub name; without it --pretrain")
    ref_offload: bool = flag(False, "keep the reference in host memory while it waits")


@dataclass(frozen=True)
class KTOLossConfig:
    """KTO loss"""

    beta: float = flag(0.01, "weight of the reference: the larger, the closer the model stays to it")
    desirable_loss_weight: float = flag(1.0, "weight of the desirable answers")
    undesirable_loss_weight: float = flag(1.0, "weight of the undesirable answers")
    ref_offload: bool = flag(False, "keep the reference in host memory while it waits")


@dataclass(frozen=True)
class DistillationConfig:
    """Distillation"""

    teacher_model: str = required("model to learn from: a Hugging Face folder or hub name")
    kd_coef: float = flag(0.4, "weight of the teacher's distribution; the answers of the data get the rest up to 1")
    teacher_offload: bool = flag(False, "keep the teacher in host memory while it waits")


@dataclass(frozen=True)
class InferenceConfig:
    """Batch inference"""

    output_path: str = required("file of the rows that are written, one JSON object a line")
    eval_task: str | None = flag(
        None, "generate (answers by Transformers), generate_vllm (answers by vLLM) or rm (rewards of answers)"
    )
    micro_batch_size: int = flag(16, "rows in one forward pass of one GPU")
    post_processor: str | None = flag(
        None,
        "what becomes of rows with rewards: rs (best answer), csft (reward in the prompt), iter_dpo (best and worst)",
    )
    normalize_reward: bool = flag(False, "standardise the rewards over the rows before csft writes them")
    reward_template: str | None = flag(
        None, "prompt that csft writes, from {input} and {reward}; without it '{input} <rm_score>: {reward} '"
    )


@dataclass(frozen=True)
class GenerationConfig:
    """Generation"""

    prompt_max_len: int = flag(1024, "longest prompt in tokens; of longer ones the end is kept")
    max_new_tokens: int = flag(1024, "longest answer in tokens")
    best_of_n: int = flag(1, "answers to each prompt")
    iter: int | None = flag(None, "use only the prompts of this iteration, from 0, --rollout_batch_size of them")
    rollout_batch_size: int = flag(2048, "prompts of one iteration")
    tp_size: int | None = flag(None, "GPUs that vLLM spreads the model over; without it all there are, at least 1")
    max_num_seqs: int = flag(256, "answers that vLLM writes at a time")
    enable_prefix_caching: bool = flag(False, "let vLLM keep the attention cache of shared prompt beginnings")


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling"""

    greedy_sampling: bool = flag(False, "take the likeliest token each time")
    top_p: float = flag(1.0, "sample from the smallest set of tokens with this probability")
    temperature: float = flag(1.0, "sampling temperature")
    repetition_penalty: float = flag(
        1.0, "divide the positive logits of tokens that were there before, multiply others"
    )
    enable_csft: bool = flag(False, "put --csft_prompt and a space behind each prompt")
    csft_prompt: str = flag("<rm_score>: 5.00", "reward that a model of conditional SFT is asked for")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """DeepSpeed"""

    zero_stage: int = flag(2, "ZeRO stage: partition nothing (0), optimiser (1), gradients too (2), weights too (3)")
    zpg: int = flag(1, "GPUs that share a second partition of the weights (ZeRO++)")
    adam_offload: bool = flag(False, "keep the optimiser in host memory")
    overlap_comm: bool = flag(False, "reduce gradients while the backward pass runs")
    grad_accum_dtype: Literal["fp32", "bf16", "fp16"] | None = flag(None, "dtype in which gradients add up")
    deepcompile: bool = flag(False, "let DeepSpeed compile the model")
    ds_tensor_parallel_size: int = flag(1, "number of GPUs that share each layer (AutoTP)")
    deadline: float = flag(
        3600.0,
        "seconds after which a wait between processes ends the run: for a rollout, an update, a weight sync, a "
        "checkpoint, a collective",
    )
    deepspeed_enable_sleep: bool = flag(False, "move the training state to host memory while others use the GPU")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints"""

    save_path: str = flag("./ckpt", "folder of the trained model")
    ckpt_path: str = flag("./ckpt/checkpoints", "folder of the checkpoints")
    save_steps: int = flag(-1, "write a checkpoint every so many steps; -1 never, only the trained model")
    max_ckpt_num: int = flag(3, "checkpoints to keep")
    max_ckpt_mem: int = flag(100_000_000, "gigabytes of checkpoints to keep")
    load_checkpoint: bool = flag(False, "go on from the newest checkpoint in --ckpt_path, or start when there is none")
    max_restarts: int = flag(0, "start again so many times, from the newest checkpoint, when a process of the run dies")
    save_hf_ckpt: bool = flag(False, "write a Hugging Face folder with each checkpoint of --save_steps")
    disable_ds_ckpt: bool = flag(False, "write no state to go on from, only the folders of --save_hf_ckpt")
    use_ds_universal_ckpt: bool = flag(False, "go on with other GPUs or another ZeRO stage than before")


@dataclass(frozen=True)
class LogConfig:
    """Logging"""

    logging_steps: int = flag(1, "log every so many steps")
    eval_steps: int = flag(-1, "evaluate every so many steps; -1 only after each epoch")
    use_wandb: str | None = flag(None, "W&B key, or true where the machine is logged in", secret=True)
    wandb_org: str | None = flag(None, "W&B entity")
    wandb_group: str | None = flag(None, "W&B group")
    wandb_project: str = flag("openrlhf", "W&B project")
    wandb_run_name: str = flag("run", "name of the run")
    use_tensorboard: str | None = flag(None, "folder of the TensorBoard logs")


@dataclass(frozen=True)
class SampleConfig:
    """Stored samples"""

    samples_per_step: int = flag(
        64, "samples of each step that are written to --save_path, whole groups of them; 0 none, -1 all"
    )
    samples_max_mb: float = flag(1000.0, "megabytes of stored samples to keep; the oldest steps go first")


@dataclass(frozen=True)
class AlgorithmConfig:
    """Algorithm"""

    advantage_estimator: str = flag(
        "gae", "gae, reinforce, reinforce_baseline, rloo, group_norm, dr_grpo, or your own as path/file.py:function"
    )
    gamma: float = flag(1.0, "discount of later rewards")
    lambd: float = flag(1.0, "λ of generalised advantage estimation")
    eps_clip: float = flag(0.2, "the policy ratio is clipped to 1 ± this")
    eps_clip_low_high: tuple[float, float] | None = flag(None, "two clip widths, below and above 1, for --eps_clip")
    policy_loss_type: str = flag("ppo", "ppo, gspo, cispo, or your own as path/file.py:function")
    dual_clip: float | None = flag(None, "bound of the ratio for negative advantages, above 1")
    value_clip: float = flag(0.2, "values are clipped to this distance from those before the update")
    entropy_loss_coef: float = flag(0.0, "weight of the entropy bonus")
    init_kl_coef: float = flag(0.01, "weight of the KL to the reference; 0 starts no reference")
    kl_target: float | None = flag(None, "adapt the KL weight to keep the KL near this")
    kl_horizon: int = flag(10000, "samples over which the KL weight adapts")
    kl_estimator: Literal["k1", "k2", "k3"] = flag("k1", "how the KL of a token is estimated")
    use_kl_loss: bool = flag(False, "put the KL into the loss instead of the reward")
    no_advantage_std_norm: bool = flag(False, "only centre the advantages, keep their scale")
    enable_vllm_is_correction: bool = flag(False, "weigh tokens by π of the trainer over π of the engine")
    vllm_is_correction_type: str = flag("tis", "tis, icepop, seq-mask-tis, or your own as path/file.py:function")
    vllm_is_truncated_threshold: tuple[float, float] = flag((0.5, 5.0), "lowest and highest of these weights")
    actor_learning_rate: float = flag(1e-6, "highest learning rate of the actor")
    critic_learning_rate: float = flag(9e-6, "highest learning rate of the critic")
    freezing_actor_steps: int = flag(-1, "train only the critic in the first so many rollout batches")
    ptx_coef: float = flag(0.05, "kept so that old command lines are understood")
    enable_ema: bool = flag(False, "save a moving average of the actor in place of its last weights")
    ema_beta: float = flag(0.992, "decay of the moving average")


@dataclass(frozen=True)
class RolloutConfig:
    """Rollouts"""

    rollout_batch_size: int = flag(1024, "prompts in one rollout batch")
    micro_rollout_batch_size: int = flag(8, "samples in one scoring pass of one GPU")
    rollout_max_tokens_per_gpu: int | None = flag(
        None,
        "tokens in one scoring pass of one GPU with --use_dynamic_batch; without it those of "
        "--train_max_tokens_per_gpu",
    )
    n_samples_per_prompt: int = flag(1, "responses per prompt")
    generate_max_len: int = flag(1024, "longest response in tokens")
    temperature: float = flag(1.0, "sampling temperature; log-probs are taken at the same")
    top_p: float = flag(1.0, "sample from the smallest set of tokens with this probability")
    stop_strings: tuple[str, ...] | None = flag(
        None, "texts that end a response and stay in it, as the end-of-text token does"
    )
    num_episodes: int = flag(1, "passes over the prompts")
    dynamic_filtering: bool = flag(
        False, "replace prompts whose responses have scores that teach nothing, until the rollout batch is full (DAPO)"
    )
    dynamic_filtering_reward_range: tuple[float, float] = flag(
        (0.0, 1.0), "keep a prompt whose mean score is above the first and below the second"
    )
    async_train: bool = flag(False, "sample the next rollout batches while the models learn from this one")
    async_queue_size: int = flag(1, "rollout batches that --async_train samples ahead, and so updates they are old")
    max_staleness: int | None = flag(
        None, "leave out samples with tokens that are more updates old than this, with --partial_rollout"
    )
    partial_rollout: bool = flag(
        False, "let new weights in while the engines generate, so that no update waits for long responses"
    )
    agent_func_path: str | None = flag(
        None, "Python file that defines AgentInstance or AgentExecutor: conversations with tools or an environment"
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation"""

    eval_temperature: float = flag(0.6, "sampling temperature in evaluation; 0 is greedy")
    eval_n_samples_per_prompt: int = flag(4, "responses per prompt in evaluation")
    best_metric_key: str | None = flag(
        None, "metric of the evaluation, as eval_default_pass1: where it is highest, the model goes to --ckpt_path/best"
    )


@dataclass(frozen=True)
class RewardConfig:
    """Rewards and values"""

    reward_pretrain: str | None = flag(
        None, "reward model, or several separated by commas: Hugging Face folders or hub names"
    )
    remote_rm_url: str | None = flag(
        None,
        "Python file that defines reward_func(queries, prompts, labels), or HTTP addresses of reward servers, "
        "separated by commas, that share each batch; a file before addresses: both give rewards",
    )
    reward_timeout: float = flag(
        180.0,
        "seconds for one call of the reward function, for one HTTP request with its repetitions, or for an agent "
        "between two answers of the policy; under --local the function runs in this process, for breakpoints, and has "
        "no limit",
    )
    on_reward_failure: Literal["stop", "drop"] = flag(
        "stop", "when a reward or an agent fails for good: stop the run, or leave the sample out of the batch"
    )
    reward_weights: tuple[float, ...] | None = flag(
        None,
        "weight of each reward in their sum: reward models in order, then the file and then the servers of "
        "--remote_rm_url; without it 1 each",
    )
    normalize_reward: bool = flag(
        False, "standardise the rewards of each reward model with the mean and std stored in it"
    )
    reward_clip_range: tuple[float, float] = flag((-10.0, 10.0), "lowest and highest reward")
    overlong_buffer_len: int | None = flag(None, "last tokens of --generate_max_len, which cost reward")
    overlong_penalty_factor: float = flag(1.0, "reward that an answer of full length loses")
    stop_properly_penalty_coef: float | None = flag(
        None, "factor of the reward of an answer that was cut; below 0 it is that reward"
    )
    critic_pretrain: str | None = flag(
        None, "start of the critic; without it the reward model, or --pretrain where a function gives the rewards"
    )
    ref_reward_offload: bool = flag(False, "keep reference and reward model in host memory while they wait")
    save_value_network: bool = flag(False, "save the critic too")


@dataclass(frozen=True)
class PlacementConfig:
    """Placement"""

    local: bool = flag(False, "run everything in this one process, without Ray, DeepSpeed and vLLM")
    actor_num_nodes: int = flag(1, "machines of the actor")
    actor_num_gpus_per_node: int = flag(8, "GPUs of the actor on each machine")
    critic_num_nodes: int = flag(1, "machines of the critic")
    critic_num_gpus_per_node: int = flag(8, "GPUs of the critic on each machine")
    ref_num_nodes: int = flag(1, "machines of the reference")
    ref_num_gpus_per_node: int = flag(8, "GPUs of the reference on each machine")
    reward_num_nodes: int = flag(1, "machines of the reward model")
    reward_num_gpus_per_node: int = flag(8, "GPUs of the reward model on each machine")
    colocate_actor_ref: bool = flag(False, "actor and reference share GPUs")
    colocate_critic_reward: bool = flag(False, "critic and reward model share GPUs")
    colocate_all_models: bool = flag(False, "all models and engines share GPUs")
    actor_init_on_gpu: bool = flag(False, "kept so that old command lines are understood")
    perf: bool = flag(False, "kept so that old command lines are understood")


@dataclass(frozen=True)
class VLLMConfig:
    """vLLM"""

    vllm_num_engines: int | None = flag(None, "number of vLLM engines; with 0 the actor's own workers sample")
    vllm_tensor_parallel_size: int = flag(1, "GPUs of one engine")
    vllm_sync_backend: Literal["nccl", "gloo"] = flag("nccl", "how new weights travel to the engines")
    vllm_sync_with_ray: bool = flag(False, "send new weights through Ray's collectives")
    enable_prefix_caching: bool = flag(False, "keep the attention cache of shared prompt beginnings")
    enforce_eager: bool = flag(False, "run the engines without CUDA graphs")
    vllm_enable_sleep: bool = flag(False, "free the engines' GPU memory while others use the GPU")
    vllm_gpu_memory_utilization: float = flag(0.95, "share of each GPU's memory for an engine")


@dataclass(frozen=True)
class CombineConfig:
    """Adapter and model"""

    model_path: str = required("model that the adapter was trained on: a Hugging Face folder or hub name")
    lora_path: str = required("folder of the LoRA adapter")
    output_path: str = required("folder for the whole model; it must be new or empty")
    is_rm: bool = flag(False, "the adapter is of a reward model or critic")
    bf16: bool = flag(False, "write the weights in bfloat16 instead of float32")
    trust_remote_code: bool = flag(False, "run code that comes with a model folder")


@dataclass(frozen=True)
class ChatConfig:
    """Conversation"""

    max_len: int = flag(4096, "longest conversation in tokens, the answer included; what was said first is forgotten")
    ta_prompt: str | None = flag(
        None, "file of text that comes before the conversation: with --apply_chat_template as the system message"
    )


@dataclass(frozen=True)
class ServeConfig:
    """Reward server"""

    reward_pretrain: str = required("reward model to serve: a Hugging Face folder or hub name")
    normalize_reward: bool = flag(False, "standardise rewards with the mean and std stored in the reward model")
    value_head_prefix: str = flag("score", "name of the score head in the reward model")
    max_len: int = flag(2048, "longest query in tokens; longer ones are cut")
    batch_size: int | None = flag(None, "queries in one forward pass; without it all of a request")
    host: str = flag("127.0.0.1", "address to listen on; one that other machines reach needs --token")
    port: int = flag(5000, "port to listen on; 0 takes a free one")
    token: str | None = flag(
        None, "what clients must send as bearer token; better given as OPENRLHF_RM_TOKEN, which ps does not show",
        secret=True,
    )  # fmt: skip
    bf16: bool = flag(False, "compute in bfloat16")
    flash_attn: bool = flag(False, "use FlashAttention 2")
    load_in_4bit: bool = flag(False, "load the weights in 4 bits")
    disable_fast_tokenizer: bool = flag(False, "use the slow tokenizer")
    use_ms: bool = flag(False, "take the model from ModelScope")
    trust_remote_code: bool = flag(False, "run code that comes with a model folder")
