"""Liger's fused Triton kernels (Hsu et al. 2024, arXiv:2410.10989) in the layers of a model, for GPUs."""

from __future__ import annotations

from transformers import PreTrainedModel


def use_liger(hf: PreTrainedModel, flag: str) -> None:
    """Put Liger's norms, rotary embeddings and feed-forwards into ``hf``. Its losses stay out: ours never make the
    logits whole.

    Raises ImportError when the kernels cannot be imported, ValueError for a family that has none.
    """
    try:
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    except ImportError as error:
        raise ImportError(
            f"--use_liger_kernel: the Liger kernels cannot be imported here ({error}); on a machine with a GPU, "
            "pip install 'openrlhf[liger]', else leave it out"
        ) from error
    family = hf.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"--use_liger_kernel: there are no Liger kernels for the family of {flag} ({family})")
    _apply_liger_kernel_to_instance(hf, cross_entropy=False, fused_linear_cross_entropy=False)
