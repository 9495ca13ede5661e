"""TRL's GRPO loss as a third party: clip, two bounds, dual clip (TRL's ``delta``) and k3, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from openrlhf.algorithms.kl import kl_estimate
from openrlhf.algorithms.masked import sequence_mean_weights, token_mean_weights
from openrlhf.algorithms.policy_losses import ppo

pytestmark = pytest.mark.slow

ROWS, PROMPT, COMPLETION, VOCABULARY = 4, 3, 6, 32


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trl")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, **sizes, **heads)).save_pretrained(folder / "model")
    config = GRPOConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        num_generations=2, per_device_train_batch_size=ROWS, epsilon=0.2, epsilon_high=0.28, beta=0.1, temperature=1.0,
        use_bias_correction_kl=False, disable_dropout=True,
    )  # fmt: skip
    prompts = Dataset.from_dict({"prompt": ["w2 w3"] * ROWS})
    trainer = GRPOTrainer(
        str(folder / "model"), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=prompts, processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.double().eval()
    return trainer


@pytest.fixture
def case(trainer):
    """The tensors TRL's loss takes, and the model's own log-probs."""
    torch.manual_seed(1)
    tokens = torch.randint(2, VOCABULARY, (ROWS, PROMPT + COMPLETION))
    mask = torch.arange(COMPLETION) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)
    with torch.no_grad():
        scores = trainer.model(tokens).logits.log_softmax(-1)[:, PROMPT - 1 : -1]
    log_probs = scores.gather(2, tokens[:, PROMPT:].unsqueeze(2)).squeeze(2)
    return log_probs, {
        "prompt_ids": tokens[:, :PROMPT],
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.int64),
        "completion_ids": tokens[:, PROMPT:],
        "completion_mask": mask.long(),
        "advantages": torch.randn(ROWS, dtype=torch.float64),
        "old_per_token_logps": log_probs + 0.5 * torch.randn_like(log_probs),
        "ref_per_token_logps": log_probs + 0.5 * torch.randn_like(log_probs),
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize(("loss_type", "weights"), [("bnpo", token_mean_weights), ("grpo", sequence_mean_weights)])
def test_loss(trainer, case, loss_type, weights, beta, dual_clip):
    log_probs, tensors = case
    trainer.loss_type, trainer.beta, trainer.args.delta = loss_type, beta, dual_clip
    advantages = tensors["advantages"].unsqueeze(1).expand(log_probs.shape)
    mask = tensors["completion_mask"].bool()
    loss = ppo(log_probs, tensors["old_per_token_logps"], advantages, mask, 0.2, 0.28, dual_clip).loss
    loss = loss + beta * kl_estimate(log_probs, tensors["ref_per_token_logps"], "k3")
    ours = (loss * weights(mask)).sum()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, tensors)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-7)  # TRL keeps log-probs in float32
