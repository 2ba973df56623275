"""Append-only files that a run which was killed goes on with."""

import json

import pytest

from pixelis_jax.training.logs import AppendLog
from pixelis_jax.workdir import WorkdirError


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_in_the_file_when_append_returns(tmp_path):
    with AppendLog(tmp_path / "a.jsonl") as log:
        log.append(0, {"text": "é\nf"})
        assert (tmp_path / "a.jsonl").read_bytes() == '{"text":"é\\nf"}\n'.encode()


def test_what_is_done_again_stands_as_it_was_first_written(tmp_path):
    path = tmp_path / "a.jsonl"
    for first in (0, 1, 0):
        with AppendLog(path) as log:
            for number in range(first, first + 3):
                log.append(number, {"run": first, "number": number})
    assert lines(path) == [{"run": 0, "number": 0}, {"run": 0, "number": 1}, {"run": 0, "number": 2}, {"run": 1, "number": 3}]


@pytest.mark.parametrize("cut", range(1, 10))
def test_half_a_line_at_the_end_is_cut_off_and_written_again(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    with AppendLog(path) as log:
        for number in range(3):
            log.append(number, {"n": number})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with AppendLog(path) as log:
        for number in range(1, 3):
            log.append(number, {"n": number})
    assert path.read_bytes() == whole


def test_a_file_that_is_half_a_line_is_empty(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n":')
    with AppendLog(path) as log:
        assert path.read_bytes() == b""
        log.append(0, {"n": 0})
    assert lines(path) == [{"n": 0}]


def test_numbered_lines_have_gaps(tmp_path):
    path = tmp_path / "a.jsonl"
    with AppendLog(path, numbered=True) as log:
        for number in (2, 5):
            log.append(number, {"number": number, "run": 0})
    with AppendLog(path, numbered=True) as log:
        for number in (2, 4, 5, 9):
            log.append(number, {"number": number, "run": 1})
    assert lines(path) == [{"number": 2, "run": 0}, {"number": 5, "run": 0}, {"number": 9, "run": 1}]


def test_a_log_that_has_lost_lines_is_not_gone_on_with(tmp_path):
    with AppendLog(tmp_path / "a.jsonl") as log:
        log.append(0, {"n": 0})
        with pytest.raises(WorkdirError, match=r"a.jsonl has 1 lines, and the next one is to be number 2"):
            log.append(2, {"n": 2})


def test_what_is_no_number_in_json_is_not_written(tmp_path):
    with AppendLog(tmp_path / "a.jsonl") as log:
        with pytest.raises(ValueError, match="JSON"):
            log.append(0, {"n": float("nan")})
        log.append(0, {"n": 1})
    assert lines(tmp_path / "a.jsonl") == [{"n": 1}]


@pytest.mark.parametrize("line", ["{}", "3", "[", '{"number":null}'])
def test_a_log_of_something_else_is_not_gone_on_with(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(WorkdirError, match=r"a.jsonl: the last line has no number"):
        AppendLog(path, numbered=True)
    assert path.read_text() == line + "\n"
