"""Flags of OpenRLHF 0.8 and later that no command has here, in either spelling, and what to do instead."""

from __future__ import annotations

_IMAGES = "is of models that read images, which are not trained here: leave it out"

OTHER_VERSIONS: dict[str, str] = {
    "vllm_generate_batch_size": "is not needed: engines get all prompts of --rollout_batch_size at once; leave it out",
    "dataloader_num_workers": "is not needed: all rows are read before the first step; leave it out",
    "use_icepop": "is --enable_vllm_is_correction --vllm_is_correction_type icepop here",
    "image_key": _IMAGES,
    "max_images_per_prompt": _IMAGES,
    "freeze_visual_encoder": _IMAGES,
}
