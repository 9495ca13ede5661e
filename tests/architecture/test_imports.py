"""Who may import what. The order of the layers is import-linter's contract in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.architecture.source import imported_libraries, module_name, trees

ROOT = Path(__file__).parents[2]

HOMES = {
    "ray": ["cluster/*"],
    "deepspeed": ["backends/deepspeed*.py"],
    "vllm": ["backends/vllm*.py", "backends/reward_server.py"],
    "wandb": ["training/log.py"],
    "tensorboard": ["training/log.py"],
    "peft": ["models/*"],
    "bitsandbytes": ["models/*"],
    "liger_kernel": ["models/*"],
    "flash_attn": ["models/*"],
    "httpx2": ["rollout/http.py"],
    "math_verify": ["rollout/math_child.py"],
    "starlette": ["backends/reward_server.py", "inspect/serve.py"],
    "uvicorn": ["backends/reward_server.py"],
    "trl": [],
    "pytest": [],
}
OPTIONAL = ["ray", "deepspeed", "vllm", "wandb", "tensorboard", "bitsandbytes", "liger_kernel", "flash_attn"]
OPTIONAL += ["math_verify", "starlette", "uvicorn"]
NOT_BASE = ["cluster/*", "backends/deepspeed*.py", "backends/vllm*.py", "backends/reward_server.py", "inspect/serve.py"]
NOT_BASE += ["rollout/math_child.py"]


def test_layers_import_downwards_only() -> None:
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("library", HOMES)
def test_library_stays_in_its_home(library: str) -> None:
    users = {path for path, tree in trees().items() if library in imported_libraries(tree)}
    strangers = {path for path in users if not any(fnmatch(path, home) for home in HOMES[library])}
    assert not strangers


def test_base_imports_without_optional_libraries() -> None:
    base = [module_name(path) for path in trees() if not any(fnmatch(path, pattern) for pattern in NOT_BASE)]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL}))\n"  # None in sys.modules: the import fails as if not installed
        f"for name in {base}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
