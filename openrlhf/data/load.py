"""Rows from files, folders and hub names, mixed into one data set."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

logger = logging.getLogger(__name__)

# What it cannot read it logs and raises; the sentence raised below is enough.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)

# File name ending → loader of the datasets library.
FILE_LOADERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
TEXT_FILES = {".json", ".jsonl", ".csv", ".txt"}


def load_rows(
    names: str,
    split: str,
    probs: str | None,
    max_samples: int,
    seed: int,
    flag: str = "--dataset",
    use_ms: bool = False,
) -> datasets.Dataset:
    """One data set from the comma-separated ``names``.

    A name is a file (json, jsonl, csv, parquet, arrow, txt), a folder written by ``save_to_disk``, a folder of data
    files, or a name of the Hugging Face hub, with ``use_ms`` of ModelScope; ``name@data_dir`` picks a sub-folder of a
    folder or hub name. ``split`` is taken where the source has
    splits; a single file and a saved ``Dataset`` have none. Each source is cut to its first ``max_samples`` rows, the
    result again. Without ``probs`` sources follow one another; with them rows are drawn by these probabilities until
    every source is used up, so small sources repeat. Code inside a data set is never run.

    ``flag`` is the flag the names came from, for messages. Raises ValueError, one sentence, for a source that cannot
    be read, an unknown split, an empty source, columns that cannot be mixed, and wrong probabilities.
    """
    sources = [name.strip() for name in names.split(",") if name.strip()]
    if not sources:
        raise ValueError(f"{flag} names no data set")
    weights = None if probs is None else parse_probs(probs, len(sources), flag)
    # Cutting the result alone gives the same rows; cutting the sources spares drawing from millions.
    parts = [_first_rows(load_source(source, split, flag, use_ms), max_samples) for source in sources]
    _tell_missing_columns(sources, parts, flag)
    return _first_rows(mix(parts, weights, seed, flag), max_samples)


def parse_probs(probs: str, count: int, flag: str) -> list[float]:
    """``"0.1,0.9"`` → [0.1, 0.9]. Raises ValueError unless they are ``count`` positive numbers that sum to 1."""
    try:
        weights = [float(part) for part in probs.split(",")]
    except ValueError:
        raise ValueError(f"{flag}_probs {probs!r} is not a comma-separated list of numbers") from None
    if len(weights) != count:
        raise ValueError(f"{flag}_probs has {len(weights)} numbers for {count} data sets of {flag}")
    # A probability of zero would wait forever for its source to be used up.
    if not all(weight > 0 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(f"{flag}_probs {probs!r} must be positive and sum to 1")
    return weights


def mix(parts: list[datasets.Dataset], weights: list[float] | None, seed: int, flag: str) -> datasets.Dataset:
    """One after another, or interleaved by ``weights`` until all are used up. Raises ValueError as ``load_rows``."""
    try:
        if weights is None:
            return datasets.concatenate_datasets(parts)
        return datasets.interleave_datasets(parts, probabilities=weights, seed=seed, stopping_strategy="all_exhausted")
    except ValueError as error:
        raise ValueError(
            f"the data sets of {flag} have columns of different types and cannot be mixed: {error}"
        ) from error


def _tell_missing_columns(sources: list[str], parts: list[datasets.Dataset], flag: str) -> None:
    # Mixing fills them with None, which later looks like empty text.
    every = {column for part in parts for column in part.column_names}
    for source, part in zip(sources, parts, strict=True):
        if missing := sorted(every - set(part.column_names)):
            logger.warning("%s %s has no column %s, which others have; there its rows are empty", flag, source,
                           " and no column ".join(missing))  # fmt: skip


def load_source(source: str, split: str, flag: str, use_ms: bool = False) -> datasets.Dataset:
    """One source, see ``load_rows``. Raises ValueError naming ``flag`` and the source."""
    name, data_dir = _split_data_dir(source)
    path = Path(name)
    if path.suffix in FILE_LOADERS:
        if data_dir:
            raise ValueError(
                f"{flag} {source}: {name} is a file, which has no part {data_dir!r}; leave out @{data_dir}"
            )
        rows = _load_file(path, flag)
    else:
        if use_ms and not path.exists():
            name = _from_modelscope(name, flag)
        _refuse_code(Path(name), flag)
        rows = _load_folder_or_hub(name, data_dir, flag)
    rows = _take_split(rows, source, split, flag)
    if len(rows) == 0:
        raise ValueError(f"{flag} {source}: the data set has no rows")
    return rows


def _split_data_dir(source: str) -> tuple[str, str | None]:
    if "@" not in source or Path(source).exists():
        return source, None
    name, data_dir = source.rsplit("@", 1)
    return name, data_dir


def _load_file(path: Path, flag: str) -> datasets.Dataset:
    if not path.is_file():
        raise ValueError(f"{flag} {path}: there is no such file")
    if path.suffix in TEXT_FILES:
        _check_utf8(path, flag)
    try:
        rows = datasets.load_dataset(FILE_LOADERS[path.suffix], data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError, StopIteration) as error:
        reason = _first_fault(path) or repr(error.__cause__ or error)
        raise ValueError(
            f"{flag} {path}: this {path.suffix} file is empty or broken ({reason}); check that it is complete"
        ) from error
    assert isinstance(rows, datasets.Dataset)
    return rows


def _first_fault(path: Path) -> str:
    """The first line of a file of JSON lines that is no JSON; empty where every line is, and of other files."""
    if path.suffix != ".jsonl":
        return ""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except ValueError:
                return f"line {number} is no JSON: {line.strip():.60}"
    return ""


def _check_utf8(path: Path, flag: str) -> None:
    # Some readers below let broken text through, and it would fail at a random row of the training.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{flag} {path}: line {number} is not UTF-8 text; save the file as UTF-8") from error


def _refuse_code(path: Path, flag: str) -> None:
    script = path if path.suffix == ".py" else path / f"{path.name}.py"
    if script.is_file():
        raise ValueError(
            f"{flag} {path}: {script.name} would have to be run to read this data set, and code inside data is never "
            "run; save its rows as jsonl or parquet and name that file"
        )


def _from_modelscope(name: str, flag: str) -> str:
    try:
        from modelscope import dataset_snapshot_download
    except ImportError as error:
        raise ValueError('--use_ms needs ModelScope: pip install "openrlhf[modelscope]"') from error
    try:
        return str(dataset_snapshot_download(name))
    except Exception as error:  # its errors have no common class over its versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{flag} {name}: ModelScope does not give this data set ({reason}); check the name and the network, or "
            "name a file"
        ) from error


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _load_saved(path: Path, flag: str) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return datasets.load_from_disk(str(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{flag} {path}: this saved data set cannot be read ({error})") from error


def _load_folder_or_hub(name: str, data_dir: str | None, flag: str) -> datasets.Dataset | datasets.DatasetDict:
    folder = Path(name, data_dir or "")
    if _is_saved(folder):
        return _load_saved(folder, flag)
    try:
        rows = datasets.load_dataset(name, data_dir=data_dir)
    except (DatasetGenerationError, ValueError, OSError, RuntimeError) as error:
        where = "in this folder" if Path(name).exists() else "on this machine or the hub"
        within = f" in {data_dir}" if data_dir else ""
        raise ValueError(f"{flag} {name}: no data set could be read{within} {where} ({error})") from error
    assert isinstance(rows, (datasets.Dataset, datasets.DatasetDict))
    return rows


def _take_split(rows: datasets.Dataset | datasets.DatasetDict, source: str, split: str, flag: str) -> datasets.Dataset:
    if isinstance(rows, datasets.Dataset):
        return rows
    if split not in rows:
        raise ValueError(f"{flag} {source}: there is no split {split!r}; the splits are {', '.join(rows)}")
    return rows[split]


def _first_rows(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    return rows.select(range(min(len(rows), int(count))))
