from __future__ import annotations

from pathlib import Path

import pytest

from certificate.material import write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    write_models(folder)
    return folder
