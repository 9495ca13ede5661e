from __future__ import annotations

import pytest

from openrlhf.algorithms.registry import load_from_file, lookup

REGISTRY = {"gae": 1, "group_norm": 2}


def test_by_name():
    assert lookup(REGISTRY, "group_norm", "--flag") == 2


def test_unknown_name_lists_the_choices_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"^--flag: there is no 'gea' .did you mean gae\?.; choose from gae, group_norm\.$"
    ):
        lookup(REGISTRY, "gea", "--flag")


def test_unknown_name_without_a_near_one():
    with pytest.raises(ValueError, match=r"^--flag: there is no 'xyz'; choose from gae, group_norm\.$"):
        lookup(REGISTRY, "xyz", "--flag")


def test_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def answer():\n    return 42\n")
    assert lookup(REGISTRY, f"{tmp_path}/mine.py:answer", "--flag")() == 42


def test_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(tmp_path)
    assert load_from_file("mine.py:answer", "--flag")() == 42


def test_a_file_runs_once(tmp_path):
    (tmp_path / "mine.py").write_text("state = []\nalias = state\n")
    assert load_from_file(f"{tmp_path}/mine.py:state", "--flag") is load_from_file(
        f"{tmp_path}/mine.py:alias", "--flag"
    )


def test_two_files_of_the_same_name_are_two(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"name = {folder!r}\n")
    assert [load_from_file(f"{tmp_path}/{folder}/mine.py:name", "--flag") for folder in ("a", "b")] == ["a", "b"]


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"--flag: there is no file '.*none.py'; write it as path/file.py:function"):
        load_from_file(f"{tmp_path}/none.py:answer", "--flag")


def test_missing_function_names_the_nearest(tmp_path):
    (tmp_path / "mine.py").write_text("def answer():\n    return 42\n")
    with pytest.raises(ValueError, match=r"mine.py does not define 'anwser' .did you mean answer"):
        load_from_file(f"{tmp_path}/mine.py:anwser", "--flag")


def test_an_error_inside_the_file_comes_through(tmp_path):
    (tmp_path / "mine.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_from_file(f"{tmp_path}/mine.py:answer", "--flag")
