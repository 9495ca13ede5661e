"""A LoRA adapter and its model into one model: ``openrlhf lora_combiner`` or
``python -m openrlhf.cli.lora_combiner``."""

from __future__ import annotations

from pathlib import Path

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import LoraCombinerConfig
from openrlhf.config.parse import parse


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(LoraCombinerConfig, argv))


def run(config: LoraCombinerConfig) -> None:
    """Model + adapter → a Hugging Face folder at ``--output_path``."""
    from openrlhf.cli.process import check_folder, quiet_libraries
    from openrlhf.config.groups import ModelConfig
    from openrlhf.models.combine import combined
    from openrlhf.models.load import load_tokenizer, save_model

    quiet_libraries()
    combine = config.combine
    output, adapter = Path(combine.output_path), Path(combine.lora_path)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output_path {output} is not empty: name a new folder")
    check_folder("--output_path", output)
    model = combined(combine)
    own = adapter if (adapter / "tokenizer_config.json").is_file() else Path(combine.model_path)
    tokenizer = load_tokenizer(str(own), ModelConfig(str(own), trust_remote_code=combine.trust_remote_code))
    save_model(model.bfloat16() if combine.bf16 else model, output, tokenizer)
    print(f"saved the model to {output}")


if __name__ == "__main__":
    main()
