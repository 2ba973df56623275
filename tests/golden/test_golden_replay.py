import copy
import json
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
from scripted import golden_trajectories, write_media

from pixelis_jax.rollout.replay import compare, replay, tools_config
from pixelis_jax.trajectory import (
    TrajectoryError,
    read_trajectories,
    trajectory_from_json,
    trajectory_to_json,
)
from tools_host.config import ToolsConfig
from tools_host.media import MediaError
from tools_host.pool import InlinePool

HERE = Path(__file__).parent
NAMES = ("image", "clip")


class RememberingPool:
    """An `InlinePool` that answers equal calls from memory, so that hundreds of mutated traces replay in seconds."""

    def __init__(self, config):
        self._pool, self._known = InlinePool(config), {}

    def submit(self, request):
        if request.key not in self._known:
            self._known[request.key] = self._pool.submit(request).result()
        future = Future()
        future.set_result(self._known[request.key])
        return future

    def close(self):
        self._pool.close()


@pytest.fixture(scope="module")
def pool():
    return RememberingPool(ToolsConfig())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, pool):
    """Media and trajectories made on this machine, so that the comparison can be exact."""
    directory = tmp_path_factory.mktemp("golden")
    write_media(directory)
    return directory, dict(zip(NAMES, golden_trajectories(directory, pool, ToolsConfig()), strict=True))


def run(trajectory, pool, directory, tolerance="exact"):
    return replay(trajectory, pool, tools_config(trajectory), media_root=directory, tolerance=tolerance)


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return 0.25 if value is None else value + (1 if isinstance(value, int) else 0.001)


def put(value, path, new):
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = new


@pytest.mark.parametrize("name", NAMES)
def test_what_was_just_recorded_replays_exactly(fresh, pool, name):
    directory, trajectories = fresh
    report = run(trajectories[name], pool, directory)
    assert report.identical and report.versions == ()
    assert report.calls == {"image": 5, "clip": 3}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_trace_replays_on_this_machine(pool, name):
    trajectory = next(item for item in read_trajectories(HERE / "trace.jsonl") if item.id == name)
    assert run(trajectory, pool, HERE, "numeric").differences == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_observation_value_is_found(fresh, pool, name):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories[name])
    missed, tried = [], 0
    for index, step in enumerate(line["steps"]):
        for path in leaves(step["observation"]):
            mutated = copy.deepcopy(line)
            at = mutated["steps"][index]["observation"]
            before = at
            for part in path:
                before = before[part]
            put(at, path, changed(before))
            tried += 1
            try:
                trajectory = trajectory_from_json(mutated)
            except TrajectoryError:
                continue  # the reader refuses it: exit status 2, never 0
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
            found = {difference.where for difference in run(trajectory, pool, directory).differences}
            if not any(f"steps[{index}].observation{where}".startswith(item) for item in found):
                missed.append((index, path))
    assert tried > 50 and missed == []


def test_added_and_removed_regions_are_found(fresh, pool):
    directory, trajectories = fresh
    for change in (lambda regions: regions.pop(), lambda regions: regions.append({**regions[0], "id": 9})):
        line = trajectory_to_json(trajectories["clip"])
        change(line["steps"][1]["observation"]["regions"])
        assert not run(trajectory_from_json(line), pool, directory).identical


def test_times_and_what_the_model_saw_are_not_compared(fresh, pool):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories["image"])
    line["steps"][0]["elapsed_ms"] = 9999.0
    line["media"][0]["shown"] = None
    assert run(trajectory_from_json(line), pool, directory).identical


@pytest.mark.parametrize("field", ["sha256", "width", "height"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_changed_medium_record_is_found(fresh, pool, index, field):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories["image"])
    line["media"][index][field] = changed(line["media"][index][field])
    assert not run(trajectory_from_json(line), pool, directory).identical


def test_a_call_that_is_not_the_one_in_the_turn_is_found(fresh, pool):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories["image"])
    line["steps"][0]["call"]["arguments"]["label"] = "disc"
    wheres = [difference.where for difference in run(trajectory_from_json(line), pool, directory).differences]
    assert "steps[0].call.arguments.label" in wheres


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["flip", "cut", "append", "empty"])
def test_any_change_of_a_file_is_found_before_anything_runs(fresh, pool, tmp_path, name, change):
    directory, trajectories = fresh
    for file in directory.iterdir():
        shutil.copy(file, tmp_path)
    trajectory = trajectories[name]
    file = tmp_path / trajectory.media[0].uri
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    new = {"flip": data, "cut": data[:-1], "append": data + b"\0", "empty": b""}[change]
    file.write_bytes(new)
    report = run(trajectory, pool, tmp_path)
    assert not report.identical and report.calls == 0 and "sha256" in report.differences[0].where


def test_a_file_that_is_gone_is_bad_input(fresh, pool, tmp_path):
    with pytest.raises(MediaError, match="scene.png"):
        run(fresh[1]["image"], pool, tmp_path)


def test_a_tool_whose_version_changed_is_named(fresh, pool):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories["image"])
    line["tools"]["ocr"]["version"] = "0"
    report = run(trajectory_from_json(line), pool, directory)
    assert report.identical and len(report.versions) == 1 and report.versions[0].startswith("ocr: version was 0, is ")


def test_wording_settings_travel_with_the_trace(fresh):
    config = ToolsConfig(boxes_in_text=False, max_lines=3)
    pool = InlinePool(config)
    directory, _ = fresh
    [trajectory, _] = golden_trajectories(directory, pool, config)
    assert "[" not in trajectory.steps[1].observation.text
    assert run(trajectory, pool, directory).identical


@pytest.mark.parametrize(
    ("recorded", "replayed", "same"),
    [
        (100, 102, True),
        (100, 103, False),
        (0.9, 0.915, True),
        (0.9, 0.95, False),
        ("region 1 [10, 20, 30, 40]", "region 1 [11, 20, 29, 40]", True),
        ("region 1: red", "region 1: blue", False),
        ('region 1: "HK 39"', 'region 1: "HK 38"', False),
        ("read HK39", "read HK38", False),
        ("area 100 px", "area 100 px and more", False),
        (None, 0.0, False),
        ("a", "b", False),
    ],
)
def test_the_numeric_tolerance_forgives_numbers_and_no_words(recorded, replayed, same):
    where = "steps[0].observation.text" if isinstance(recorded, str) else "x.bbox_2d[0]"
    assert (not list(compare(where, recorded, replayed, "numeric"))) is same
    assert list(compare("x", recorded, replayed, "exact")) != []


def test_what_a_tool_read_is_a_word_even_if_it_is_a_number():
    assert list(compare("steps[0].observation.regions[0].text", "120", "121", "numeric"))
    assert list(compare("steps[0].observation.data.text", "HK3V9", "HK3V8", "numeric"))


def test_the_numeric_tolerance_forgives_no_ids_and_judges_masks_by_overlap(fresh):
    assert list(compare("regions[0].id", 1, 2, "numeric"))
    mask = fresh[1]["image"].steps[3].observation.regions[0].mask
    assert mask is not None and not list(compare("mask", dict(mask), dict(mask), "numeric"))
    line = json.loads(json.dumps(dict(mask)))
    assert list(compare("mask", line, {**line, "size": [1, 1]}, "numeric"))
    for change in ({"size": [10**6, 10**6]}, {"size": ["a", None]}, {"counts": "!!!garbage"}, {"counts": 5}, {"size": [1, 1]}):
        assert list(compare("mask", {**line, **change}, line, "numeric"))


def test_a_number_too_large_to_compare_is_a_difference():
    assert list(compare("steps[0].observation.data.share", 10**400, 0.5, "numeric"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line["media"][1]["parent"].update(media=2), "media[1].parent.media"),
        (lambda line: line["media"][1]["parent"].update(media=99), "media[1].parent.media"),
        (lambda line: line["steps"][1]["observation"]["regions"][0].update(media=99), "regions[0].media"),
        (lambda line: line["steps"][0]["observation"]["media"].append(99), "observation.media"),
    ],
)
def test_ids_that_lead_nowhere_are_differences(fresh, pool, change, words):
    directory, trajectories = fresh
    line = trajectory_to_json(trajectories["image"])
    change(line)
    wheres = [difference.where for difference in run(trajectory_from_json(line), pool, directory, "numeric").differences]
    assert any(words in where for where in wheres)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (5, "sampling.environment: expected an object"),
        ({"max_lines": "x"}, "environment.max_lines: expected an integer"),
        ({"dialect": "foo"}, "environment.dialect: expected one of native, qwen3_vl"),
        ({"dialect": ["a"]}, "environment.dialect: expected one of native, qwen3_vl"),
        ({"boxes_in_text": 7}, "environment.boxes_in_text: expected true or false"),
        ({"colour": 1}, "environment.colour: unknown field"),
        ({"backend_options": [1]}, "environment.backend_options: expected an object"),
        ({"backend_options": {"zoom": 3}}, "environment.backend_options.zoom: expected an object"),
        ({"backend_options": {"zoom": {"x": 1}}}, "environment.backend_options: tool 'zoom' has no back-end"),
        ({"backend_options": {"ocr": {"x": 1}}}, "environment.backend_options: back-end 'rapidocr' of 'ocr' has no option 'x'"),
    ],
)
def test_settings_that_no_config_could_have_are_bad_input(fresh, record, message):
    line = trajectory_to_json(fresh[1]["image"])
    line["sampling"]["environment"] = record
    with pytest.raises(TrajectoryError, match=re.escape(message)):
        tools_config(trajectory_from_json(line))
