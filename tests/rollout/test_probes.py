"""Fidelity without labels: the checks by hand, and with the real tools on generated scenes."""

import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.data import traces
from pixelis_jax.data.scenes import generate
from pixelis_jax.rollout import probe_checks
from pixelis_jax.rollout.probe_checks import NOTHING, ProbeSettings, spans_across, spans_iou
from pixelis_jax.rollout.probes import Probes
from pixelis_jax.trajectory import Source, Step, Trajectory
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.pool import InlinePool, WorkerPool
from tools_host.protocol import Found, Span, ToolCall, ToolError

CONFIG = ToolsConfig(boxes_in_text=False)
SETTINGS = ProbeSettings()


class CountingPool:
    """Runs calls here and counts them by tool; `fail` answers calls of a tool with an outage."""

    def __init__(self):
        self._inline, self.calls, self.fail = InlinePool(CONFIG), [], None

    def submit(self, request):
        self.calls.append(request.tool)
        if request.tool != self.fail:
            return self._inline.submit(request)
        lost: Future = Future()
        lost.set_result(ToolError(code="timeout", message="too long"))
        return lost

    def close(self):
        pass


@pytest.fixture(scope="module")
def pool():
    return CountingPool()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def scene_of(folder, family, index=1):
    scene = generate(family, "test", index)
    return scene, traces.make_example(scene, folder)


def oracle(folder, pool, family, index=1, **options):
    scene, example = scene_of(folder, family, index)
    return traces.oracle_trajectory(scene, example, folder, pool, config=CONFIG, **options)


def elsewhere(seed):
    """Writes boxes of the right size at random places."""
    rng = np.random.default_rng(seed)

    def place(box, width, height):
        w, h = (box[2] - box[0]) / width * 1000, (box[3] - box[1]) / height * 1000
        x, y = (int(rng.uniform(0, 1000 - side)) for side in (w, h))
        return x, y, min(1000, int(x + w) + 1), min(1000, int(y + h) + 1)

    return place


def run(folder, pool, example, *calls):
    """A trajectory that makes calls, whatever they find."""
    environment = EpisodeEnvironment([str(folder / path) for path in example.media], CONFIG, uris=example.media)
    steps = [Step(raw="", thought="", call=call, observation=environment.run(call, pool)) for call in calls]
    return Trajectory(
        id="made",
        example=example.id,
        question="?",
        media=tuple(environment.media),
        steps=tuple(steps),
        final=None,
        answer="x",
        stopped="answer",
        source=Source(dataset="d"),
    )


def paths_of(folder, trajectory):
    return [str(folder / medium.uri) for medium in trajectory.media if medium.parent is None]


def measure(folder, pool, *trajectories, **options):
    return Probes(pool, CONFIG, **options).measure(trajectories, paths_of(folder, trajectories[0]))


@pytest.mark.parametrize("family", ["read", "angle", "where"])
def test_what_is_there_is_found_again_and_a_random_place_is_not(folder, pool, family):
    right = oracle(folder, pool, family, index=0)
    wrong = [oracle(folder, pool, family, index=0, place=elsewhere(seed)) for seed in (100, 101, 102)]
    found = measure(folder, pool, right, *wrong)
    assert found.fidelity[0] > 0.7 and found.fidelity == found.measured
    assert found.fidelity[0] > float(np.mean(found.fidelity[1:])) + 0.4
    assert {call.tool for call in found.calls} >= {{"read": "ocr", "angle": "segment", "where": "track"}[family]}


def test_a_reading_is_checked_by_hand(folder, pool):
    right = oracle(folder, pool, "read")
    (entry,) = measure(folder, pool, right).calls
    assert entry.raw == 1.0 and 0 < entry.null < 1 and entry.fidelity == 1.0
    # One letter of the reading changed: CER 1 / length.
    (step,) = right.steps
    (region,) = step.observation.regions
    changed = "#" + region.text[1:]
    observation = dataclasses.replace(step.observation, regions=(dataclasses.replace(region, text=changed),))
    misread = dataclasses.replace(right, steps=(dataclasses.replace(step, observation=observation),))
    (again,) = measure(folder, pool, misread).calls
    assert again.null == entry.null and again.raw == pytest.approx(1 - 1 / len(changed))
    assert again.fidelity == pytest.approx((again.raw - again.null) / (1 - again.null))


def test_without_random_regions_the_numbers_are_others(folder, pool):
    right = oracle(folder, pool, "where")
    lifted = measure(folder, pool, right).calls[0]
    bare = measure(folder, pool, right, settings=ProbeSettings(draws=0)).calls[0]
    assert bare.null == 0 and bare.fidelity == bare.raw == lifted.raw
    assert lifted.null > 0.1 and lifted.fidelity < lifted.raw
    assert lifted.fidelity == pytest.approx((lifted.raw - lifted.null) / (1 - lifted.null))


class ChangingPool(CountingPool):
    """Changes what a tool found before anybody sees it."""

    def __init__(self, tool, change):
        super().__init__()
        self._tool, self._change = tool, change

    def submit(self, request):
        future = super().submit(request)
        if request.tool != self._tool:
            return future
        changed: Future = Future()
        changed.set_result(dataclasses.replace(future.result(), regions=self._change(future.result().regions)))
        return changed


def test_a_path_has_to_come_back_in_time(folder, pool):
    right = oracle(folder, pool, "where")
    early = ChangingPool("track_back", lambda found: tuple(dataclasses.replace(f, time_s=f.time_s + 0.3) for f in found))
    soon = ChangingPool("track_back", lambda found: tuple(dataclasses.replace(f, time_s=f.time_s + 0.2) for f in found))
    assert measure(folder, early, right).calls[0].raw == 0.0
    assert measure(folder, soon, right).calls[0].raw == measure(folder, pool, right).calls[0].raw > 0.8


def test_text_beside_the_box_was_not_asked_for(folder, pool):
    right = oracle(folder, pool, "read")
    stray = Found(box_px=(0, 0, 2, 2), text="ZZZZ")  # in the corner, where no box of this scene is
    assert measure(folder, ChangingPool("ocr", lambda found: (*found, stray)), right).calls[0].raw == 1.0
    x1, y1, x2, y2 = right.steps[0].call.arguments["bbox_2d"]
    root = right.media[0]
    x, y = (x1 + x2) / 2000 * root.width, (y1 + y2) / 2000 * root.height
    within = dataclasses.replace(stray, box_px=(x - 1, y - 1, x + 1, y + 1))
    assert measure(folder, ChangingPool("ocr", lambda found: (*found, within)), right).calls[0].raw < 0.5


def test_equal_calls_are_checked_once_and_remembered(folder, pool):
    right = oracle(folder, pool, "read")
    probes, paths = Probes(pool, CONFIG), paths_of(folder, right)
    before = len(pool.calls)
    first = probes.measure([right, right, right], paths)
    asked = len(pool.calls) - before
    # The jittered call and a random one each draw; then again where something stands there.
    assert 1 + SETTINGS.draws <= asked <= 1 + 2 * SETTINGS.draws
    assert len(first.calls) == 1 and len(set(first.fidelity)) == 1
    assert probes.measure([right], paths).calls == first.calls and len(pool.calls) == before + asked
    assert Probes(pool, CONFIG).measure([right], paths) == probes.measure([right], paths)  # seeded by the call's hash


def test_a_crop_is_checked_where_it_was_cut(folder, pool, monkeypatch):
    _, example = scene_of(folder, "angle", 0)
    right = oracle(folder, pool, "angle", 0)
    assert [step.call.name for step in right.steps] == ["zoom", "segment", "properties"]
    box = right.steps[0].call.arguments["bbox_2d"]
    deep = run(
        folder,
        pool,
        example,
        ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": box}),
        ToolCall(name="zoom", arguments={"media": 2, "bbox_2d": [50, 50, 950, 950]}),
        ToolCall(name="segment", arguments={"media": 3, "bbox_2d": [60, 60, 940, 940]}),
        ToolCall(name="segment", arguments={"media": 3, "point_2d": [500, 500]}),
    )
    found = measure(folder, pool, right, deep)
    by_box = found.steps[1][2]
    assert by_box.tool == "segment" and by_box.raw > 0.8 and by_box.fidelity > 0.7
    assert found.steps[1][3].raw > 0.8
    # zoom and properties have no check, and stay out of the mean.
    assert found.steps[1][0].fidelity is None and found.steps[0][2].fidelity is None
    assert found.measured[0] == found.steps[0][1].fidelity
    assert found.measured[1] == pytest.approx((by_box.fidelity + found.steps[1][3].fidelity) / 2)
    # Were the offset of the crop forgotten, the object would not lie where it is looked for.
    monkeypatch.setattr(
        probe_checks, "to_root", lambda media, number, box: (1, (0, 0, media[number - 1].width, media[number - 1].height))
    )
    assert measure(folder, pool, right, deep).steps[1][2].raw < 0.2


def test_a_frame_is_read_at_its_own_time(folder, pool):
    _, example = scene_of(folder, "flash_read", 1)
    right = oracle(folder, pool, "flash_read", 1)
    frame, box = right.media[1], right.steps[1].call.arguments["bbox_2d"]
    when = {"media": 1, "time_s": frame.parent.time_s, "bbox_2d": box}
    framed = run(folder, pool, example, ToolCall(name="zoom", arguments=when), ToolCall(name="ocr", arguments={"media": 2}))
    assert framed.steps[1].observation.regions
    assert measure(folder, pool, framed).steps[0][1].raw == 1.0
    # The text stands there for a moment: had the first frame been read again, there would be none.
    first = run(folder, pool, example, ToolCall(name="ocr", arguments={"media": 1, "time_s": 0, "bbox_2d": box}))
    assert not first.steps[0].observation.regions


def test_what_says_nothing_is_worth_nothing_and_costs_no_call(folder, pool):
    _, example = scene_of(folder, "read")
    everything = run(folder, pool, example, ToolCall(name="ocr", arguments={"media": 1}))
    assert everything.steps[0].observation.regions
    before = len(pool.calls)
    whole = measure(folder, pool, everything)
    assert (whole.calls[0].raw, whole.calls[0].fidelity) == (0.0, 0.0)
    assert measure(folder, pool, everything, settings=ProbeSettings(most_area=0.9, draws=0)).fidelity == (0.0,)
    assert len(pool.calls) == before
    assert measure(folder, pool, everything, settings=ProbeSettings(most_area=1.0)).calls[0].raw > 0.9
    empty = run(folder, pool, example, ToolCall(name="ocr", arguments={"media": 1, "bbox_2d": [0, 0, 20, 20]}))
    assert empty.steps[0].observation.ok and measure(folder, pool, empty).fidelity == (0.0,)


def test_a_trajectory_without_a_check_gets_the_median(folder, pool):
    _, example = scene_of(folder, "read")
    good = oracle(folder, pool, "read")
    bad = run(folder, pool, example, ToolCall(name="ocr", arguments={"media": 1, "bbox_2d": [0, 0, 20, 20]}))
    blind = run(folder, pool, example, ToolCall(name="ocr", arguments={"media": 7}))
    looked = run(folder, pool, example, ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": [0, 0, 20, 20]}))
    found = measure(folder, pool, good, bad, blind, looked)
    assert found.measured == (found.fidelity[0], 0.0, None, None)
    assert found.fidelity[2:] == (found.fidelity[0] / 2,) * 2
    assert found.steps[2] == (None,) and found.steps[3][0].fidelity is None
    alone = measure(folder, pool, blind, looked)
    assert alone.measured == (None, None) and alone.fidelity == (SETTINGS.unknown,) * 2


def test_an_outage_is_no_verdict_and_is_not_remembered(folder, pool):
    right = oracle(folder, pool, "read")
    probes, paths = Probes(pool, CONFIG), paths_of(folder, right)
    pool.fail = "ocr"
    try:
        found = probes.measure([right], paths)
    finally:
        pool.fail = None
    assert found.measured == (None,) and found.calls[0].raw is None
    assert probes.measure([right], paths).measured[0] > 0.7


def test_other_files_are_refused(folder, pool):
    right, other = oracle(folder, pool, "read"), oracle(folder, pool, "read", index=2)
    with pytest.raises(ValueError, match="is not about"):
        Probes(pool, CONFIG).measure([right], paths_of(folder, other))


def test_workers_give_the_same_numbers_while_the_caller_goes_on(folder, pool):
    group = [oracle(folder, pool, "where"), oracle(folder, pool, "where", rng=np.random.default_rng(3))]
    inline = measure(folder, pool, *group)
    with WorkerPool(CONFIG, workers=1, memory_limit_bytes=None) as workers:
        pending = Probes(workers, CONFIG).begin(group, paths_of(folder, group[0]))
        assert pending.result() == inline


def test_spans_of_others(folder, pool):
    _, example = scene_of(folder, "cut", 0)
    cut = ToolCall(name="localize", arguments={"media": 1, "event": "scene_change"})
    boxed = ToolCall(name="localize", arguments={"media": 1, "event": "scene_change", "bbox_2d": [0, 0, 900, 1000]})
    motion = ToolCall(name="localize", arguments={"media": 1, "event": "motion"})
    group = [run(folder, pool, example, call) for call in (cut, cut, boxed, motion)]
    found = measure(folder, pool, *group)
    agreeing, odd = found.steps[0][0], found.steps[3][0]
    assert agreeing == found.steps[1][0] and len(found.calls) == 3
    assert agreeing.fidelity > odd.fidelity + 0.4
    # Nobody to compare with: no check. Equal calls of another trajectory agree fully.
    assert measure(folder, pool, group[0]).measured == (None,)
    assert measure(folder, pool, group[0], group[1]).calls[0].raw == 1.0


def test_spans_by_hand():
    spans = lambda *pairs: [Span(start_s=start, end_s=end) for start, end in pairs]  # noqa: E731
    # 1 of 3 seconds in common with the first; the best of the second's two calls is equal.
    others = [[spans((3, 5))], [spans((9, 10)), spans((2, 4))]]
    raw, null = spans_across(spans((2, 4)), others, 10.0, SETTINGS, 0)
    assert raw == pytest.approx((1 / 3 + 1) / 2)
    assert 0 < null < raw and spans_across(spans((2, 4)), others, 10.0, SETTINGS, 0) == (raw, null)
    assert spans_across(spans((2, 4)), [], 10.0, SETTINGS, 0) is None
    assert spans_across([], others, 10.0, SETTINGS, 0) == NOTHING
    assert spans_across(spans((0, 5), (4, 9.5)), others, 10.0, SETTINGS, 0) == NOTHING  # 95 % of the clip
    assert spans_across(spans((2, 4)), [[[]]], 10.0, SETTINGS, 0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([(0, 2)], [(1, 3)], 1 / 3),
        ([(0, 1), (2, 3)], [(0, 3)], 2 / 3),
        ([(0, 2), (1, 3)], [(0, 3)], 1.0),
        ([(1, 1)], [(1, 1)], 1.0),
        ([(1, 1)], [(2, 2)], 0.0),
        ([], [], 0.0),
    ],
)
def test_overlap_of_spans(a, b, expected):
    assert spans_iou(a, b) == pytest.approx(expected) and spans_iou(b, a) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=4))
def test_spans_overlap_as_seconds_do(pairs):
    spans = [(start, start + length) for start, length in pairs]
    other = [(3, 7)]
    seconds = {second for start, end in spans for second in range(start, end)}
    both, either = seconds & set(range(3, 7)), seconds | set(range(3, 7))
    assert spans_iou(spans, other) == pytest.approx(len(both) / len(either))
    assert spans_iou(spans, spans) == 1.0
