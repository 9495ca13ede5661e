"""Models from ModelScope instead of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from openrlhf.config.groups import ModelConfig


def local_folder(path: str, config: ModelConfig, flag: str) -> str:
    """``path`` as Transformers and vLLM take it: with ``--use_ms`` a name that is no folder here is downloaded.

    Raises ValueError naming ``flag`` when ModelScope is not installed or does not give the model.
    """
    if not config.use_ms or Path(path).exists():
        return path
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ValueError('--use_ms needs ModelScope: pip install "openrlhf[modelscope]"') from error
    try:
        return str(snapshot_download(path))
    except Exception as error:  # its errors have no common class over its versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{flag} {path}: ModelScope does not give this model ({reason}); check the name and the network, or name a "
            "folder"
        ) from error
