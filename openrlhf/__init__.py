"""openrlhf: RLHF and LLM post-training, from one process on a laptop to Ray, vLLM and DeepSpeed on a cluster."""

import logging

__version__ = "0.1.0"

# bitsandbytes, which PEFT imports wherever it is installed, warns at once of a CPU kernel that nobody asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
