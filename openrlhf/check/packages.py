"""Whether the packages are here that the flags ask for, and in versions that are known to work."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from openrlhf.check.findings import Severity
from openrlhf.config.commands import BatchInferenceConfig, Command, PPOConfig, ServeRMConfig, TrainCommand, flat
from openrlhf.config.derived import needs_deepspeed

ENGINES = ("torch", "transformers", "deepspeed", "vllm", "ray")
MODULE = {"liger-kernel": "liger_kernel"}  # where the name that is imported is another than that of the package
FLAGS = {
    "use_liger_kernel": ("liger-kernel", "liger"),
    "load_in_4bit": ("bitsandbytes", "qlora"),
    "use_wandb": ("wandb", "wandb"),
    "use_tensorboard": ("tensorboard", "tensorboard"),
    "use_ms": ("modelscope", "modelscope"),
}


def check_packages(config: Command, launched: bool) -> None:
    """Raise ImportError for the first package that the flags need and that is not here."""
    for package, (extra, why) in needed(config, launched).items():
        if not _is_here(_module(package)):
            raise ImportError(_missing(package, extra, why))


def look_at_packages(config: Command, launched: bool) -> Iterator[tuple[Severity, str]]:
    """``launched``: the command runs under ``deepspeed``, ``torchrun`` or a scheduler of theirs."""
    wanted = needed(config, launched)
    here = {name: version(name) for name in (*ENGINES, *wanted)}
    yield "ok", ", ".join(f"{name} {number or 'is not installed'}" for name, number in here.items())
    for package, (extra, why) in wanted.items():
        number, requirement = here[package], _requirement(package, extra)
        if number is None:
            yield "error", _missing(package, extra, why)
        elif requirement is not None and not requirement.specifier.contains(number, prereleases=True):
            yield (
                "warning",
                f"{why} uses {package} {number}, and {requirement} is what is tested: "
                f"pip install 'openrlhf[{extra}]' if it fails",
            )


def needed(config: Command, launched: bool) -> dict[str, tuple[str, str]]:
    """Package → the extra that brings it, and what needs it. Only what is not of the base install."""
    wanted: dict[str, tuple[str, str]] = {}
    values = flat(config)
    if isinstance(config, PPOConfig):
        engines = () if config.placement.local else ("ray", "deepspeed", "vllm")
        wanted |= {name: (name, "a run without --local") for name in engines}
    elif launched:
        wanted["deepspeed"] = ("deepspeed", "a run of several processes")
    elif isinstance(config, TrainCommand) and (flags := needs_deepspeed(config.deepspeed)):
        wanted["deepspeed"] = ("deepspeed", flags[0])
    if isinstance(config, BatchInferenceConfig) and config.inference.eval_task == "generate_vllm":
        wanted["vllm"] = ("vllm", "--eval_task generate_vllm")
    if isinstance(config, ServeRMConfig):
        wanted |= {name: ("serve", "serve_rm") for name in ("starlette", "uvicorn")}
    return wanted | {package: (extra, f"--{flag}") for flag, (package, extra) in FLAGS.items() if values.get(flag)}


def version(package: str) -> str | None:
    """The installed version, None when it is not here. A build may have another name, as vLLM's for the CPU has."""
    if not _is_here(_module(package)):
        return None
    names = _distributions().get(_module(package), [])
    return metadata.version(names[0]) if names else "of unknown version"


def _requirement(package: str, extra: str) -> Requirement | None:
    """What pyproject.toml asks of the package. Of vLLM it has two extras, which differ in age alone."""
    if package == "vllm":
        from openrlhf.backends.vllm import MINIMUM_VLLM

        return Requirement(f"vllm>={MINIMUM_VLLM}")
    for text in metadata.requires("openrlhf") or []:
        requirement = Requirement(text)
        wanted = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        if requirement.name == package and wanted:
            return requirement
    return None


def _missing(package: str, extra: str, why: str) -> str:
    return f"{why} needs {package}, which is not here: pip install 'openrlhf[{extra}]'"


@cache  # it reads the record of every package that is installed
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _is_here(module: str) -> bool:
    return sys.modules.get(module) is not None or find_spec(module) is not None


def _module(package: str) -> str:
    return MODULE.get(package, package)
