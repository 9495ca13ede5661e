"""openrlhf: RLHF and LLM post-training, from one process on a laptop to Ray, vLLM and DeepSpeed on a cluster."""

__version__ = "0.1.0"
