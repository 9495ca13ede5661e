from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest

from openrlhf.data.load import load_rows
from tests.modelscope import offer, take_away

ROWS = [{"input": "hello", "n": 1}, {"input": "how", "n": 2}, {"input": "are", "n": 3}]


def load(names, split="train", probs=None, max_samples=1000, seed=42):
    return load_rows(str(names), split, probs, max_samples, seed)


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_files_of_each_kind(tmp_path, ending):
    assert list(load(write(tmp_path / f"rows{ending}", ROWS))) == ROWS


def test_arrow_file_and_saved_folder(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert list(load(tmp_path / "saved")) == ROWS
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    assert list(load(arrow)) == ROWS


def test_lines_of_a_text_file_are_rows(tmp_path):
    (tmp_path / "wiki.txt").write_text("one\ntwo\n")
    assert list(load(tmp_path / "wiki.txt")) == [{"text": "one"}, {"text": "two"}]


def test_a_split_is_taken_or_the_splits_are_named(tmp_path):
    parts = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert list(load(tmp_path / "saved", split="test")) == ROWS[2:]
    with pytest.raises(ValueError, match=r"--dataset .*saved: there is no split 'val'; the splits are train, test"):
        load(tmp_path / "saved", split="val")


def test_a_folder_of_files_with_a_data_dir(tmp_path):
    for name, rows in (("a", ROWS[:1]), ("b", ROWS[1:])):
        (tmp_path / "hub" / name).mkdir(parents=True)
        write(tmp_path / "hub" / name / "train.jsonl", rows)
    assert list(load(f"{tmp_path}/hub@b")) == ROWS[1:]
    assert list(load(f"{tmp_path}/hub@a")) == ROWS[:1]


def test_a_path_may_hold_an_at_sign(tmp_path):
    (tmp_path / "x@y").mkdir()
    assert list(load(write(tmp_path / "x@y" / "rows.jsonl", ROWS))) == ROWS


def test_a_folder_with_a_script_is_not_run(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ValueError, match=r"--dataset .*evil"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_columns_of_mixed_types_stay_as_they_were(tmp_path):
    rows = [{"input": [{"role": "user", "content": "x"}], "label": 1}, {"input": "text", "label": "two"}]
    for ending in (".json", ".jsonl"):
        assert list(load(write(tmp_path / f"mixed{ending}", rows))) == rows


@pytest.mark.parametrize(
    "name, content",
    [
        ("bad.jsonl", b'{"a": "ok"}\n{"a": "\xff\xfe"}\n'),
        ("bad.json", b'[{"a": "ok"}, {"a": "\xff\xfe"}]'),
        ("cut.jsonl", b'{"a": "ok"}\n{"a": \n'),
        ("cut.json", b'[{"a": "ok"}, {"a": '),
        ("bad.csv", b"a,b\n1,\xff\n"),
        ("bad.parquet", b"not parquet"),
        ("empty.jsonl", b""),
        ("empty.json", b"[]"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--dataset .*{name}: ") as error:
        load(tmp_path / name)
    assert len(str(error.value).splitlines()) == 1


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "ok"}\n{"a": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl: line 2 is not UTF-8"):
        load(tmp_path / "latin.jsonl")


def test_the_line_that_is_no_json_is_named_and_nobody_else_complains(tmp_path, caplog):
    (tmp_path / "broken.jsonl").write_text('{"a": "ok"}\n{oops\n{"a": "ok"}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl: .*\(line 2 is no JSON: \{oops\); check that it is complete$"):
        load(tmp_path / "broken.jsonl")
    assert not caplog.records


def test_a_missing_file_and_an_unknown_name_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^--dataset .*none\.json: there is no such file$"):
        load(tmp_path / "none.json")
    with pytest.raises(
        ValueError, match=r"^--dataset nobody/nothing: no data set could be read on this machine or the hub"
    ):
        load("nobody/nothing")
    with pytest.raises(ValueError, match="names no data set"):
        load(" , ")


def sources(tmp_path, sizes):
    paths = [write(tmp_path / f"s{i}.jsonl", [{"s": i, "n": n} for n in range(k)]) for i, k in enumerate(sizes)]
    return ",".join(str(path) for path in paths)


def test_without_probabilities_sources_follow_one_another(tmp_path):
    rows = load(sources(tmp_path, [2, 3]))
    assert [(row["s"], row["n"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_each_source_and_the_whole_are_cut(tmp_path):
    rows = load(sources(tmp_path, [2, 5]), max_samples=3)
    assert [(row["s"], row["n"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]


def test_sources_are_mixed_in_proportion_until_all_are_used(tmp_path):
    names = sources(tmp_path, [30, 600, 600])
    rows = load(names, probs="0.1,0.4,0.5", max_samples=10_000)
    counts = Counter(row["s"] for row in rows)
    # Standard deviation of a share over more than 1200 draws is below 0.015.
    for source, share in enumerate((0.1, 0.4, 0.5)):
        assert counts[source] / len(rows) == pytest.approx(share, abs=0.045)
    assert {(row["s"], row["n"]) for row in rows} >= {
        (s, n) for s, k in ((0, 30), (1, 600), (2, 600)) for n in range(k)
    }


def test_mixing_depends_on_the_seed_alone(tmp_path):
    names = sources(tmp_path, [20, 20])
    first, again, other = (list(load(names, probs="0.5,0.5", seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "probs, message",
    [
        ("0.5", "--dataset_probs has 1 numbers for 2 data sets"),
        ("0.5,x", "not a comma-separated list of numbers"),
        ("0.5,0.6", "must be positive and sum to 1"),
        ("1.0,0.0", "must be positive and sum to 1"),
        ("nan,1.0", "must be positive and sum to 1"),
    ],
)
def test_wrong_probabilities_are_refused(tmp_path, probs, message):
    with pytest.raises(ValueError, match=message):
        load(sources(tmp_path, [2, 2]), probs=probs)


@pytest.mark.parametrize("probs", [None, "0.5,0.5"])
def test_columns_that_cannot_be_mixed_are_refused(tmp_path, probs):
    a = write(tmp_path / "a.jsonl", [{"x": 1}])
    b = write(tmp_path / "b.jsonl", [{"x": "one"}])
    with pytest.raises(ValueError, match="columns of different types and cannot be mixed"):
        load(f"{a},{b}", probs=probs)


def test_a_saved_part_of_a_folder(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "hub" / "saved")
    assert list(load(f"{tmp_path}/hub@saved")) == ROWS


def test_a_folder_of_files_with_splits(tmp_path):
    for name, rows in (("train.parquet", ROWS[:2]), ("test.parquet", ROWS[2:])):
        (tmp_path / "hub").mkdir(exist_ok=True)
        write(tmp_path / "hub" / name, rows)
    assert list(load(tmp_path / "hub")) == ROWS[:2]
    assert list(load(tmp_path / "hub", split="test")) == ROWS[2:]


def test_a_file_has_no_parts(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"rows\.jsonl is a file, which has no part 'x'; leave out @x"):
        load(f"{tmp_path}/rows.jsonl@x")


@pytest.mark.parametrize("name", ["evil", "evil/evil.py"])
def test_a_script_is_named_with_the_way_out(tmp_path, name):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    write(tmp_path / "evil" / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"evil\.py would have to be run .* never run; save its rows as jsonl or parq"):
        load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name, data_dir", [("org/sums", None), ("org/sums@easy", "easy")])
def test_a_hub_name_goes_to_the_library_with_its_part(monkeypatch, name, data_dir):
    # The hub cannot be reached from here: the library's answer is a stand-in.
    asked = []

    def load_dataset(path, **how):
        asked.append((path, how))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load(name)) == ROWS
    assert asked == [("org/sums", {"data_dir": data_dir})]


def test_modelscope_data_is_downloaded_and_read_as_a_folder(tmp_path, monkeypatch):
    # ModelScope cannot be reached from here: its package is a stand-in.
    (tmp_path / "down" / "easy").mkdir(parents=True)
    write(tmp_path / "down" / "easy" / "train.jsonl", ROWS)
    local = write(tmp_path / "local.jsonl", ROWS[:1])
    asked = offer(monkeypatch, {}, {"org/sums": tmp_path / "down"})
    rows = load_rows(f"org/sums@easy,{local}", "train", None, 100, 0, use_ms=True)
    assert list(rows) == [*ROWS, *ROWS[:1]]
    assert asked == ["org/sums"]
    with pytest.raises(
        ValueError, match=r"^--dataset org/none: ModelScope does not .* \(no repository org/none\); che"
    ):
        load_rows("org/none", "train", None, 100, 0, use_ms=True)


def test_modelscope_data_with_a_script_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "sums.py").write_text("")
    offer(monkeypatch, {}, {"org/sums": tmp_path / "sums"})
    with pytest.raises(ValueError, match=r"sums\.py would have to be run"):
        load_rows("org/sums", "train", None, 100, 0, use_ms=True)


def test_modelscope_missing_is_a_sentence(monkeypatch):
    take_away(monkeypatch)
    with pytest.raises(ValueError, match=r'^--use_ms needs ModelScope: pip install "openrlhf\[modelscope\]"$'):
        load_rows("org/sums", "train", None, 100, 0, use_ms=True)


def test_columns_that_only_some_sources_have_are_told(tmp_path, caplog):
    a = write(tmp_path / "a.jsonl", [{"q": "x"}])
    b = write(tmp_path / "b.jsonl", [{"q": "y", "text": "z"}])
    assert list(load(f"{a},{b}")) == [{"q": "x", "text": None}, {"q": "y", "text": "z"}]
    assert [record.getMessage() for record in caplog.records] == [
        f"--dataset {a} has no column text, which others have; there its rows are empty"
    ]
