"""Traces: what is written, and how busy a track was."""

import json

import pytest

from pixelis_jax.rollout.tracing import Tracer


def test_spans_that_overlap_are_busy_once():
    tracer = Tracer(on=True)
    start = tracer._start
    for begin, end, lane in ((0.0, 1.0, 0), (0.5, 2.0, 1), (3.0, 3.5, 0)):
        tracer.add("tool", "tool", start + begin, start + end, lane=lane)
    assert tracer.busy("tool") == pytest.approx(2.5) and tracer.busy("device") == 0


def test_a_trace_is_the_json_that_perfetto_reads(tmp_path):
    tracer = Tracer(on=True, most_events=3)
    with tracer.span("decode", "device", slots=3):
        pass
    with pytest.raises(ZeroDivisionError), tracer.span("encode", "pipeline"):
        raise ZeroDivisionError
    tracer.count("occupancy", 0.5)
    tracer.count("occupancy", 0.6)
    tracer.save(tmp_path / "trace.json")
    written = json.loads((tmp_path / "trace.json").read_text())
    assert written["otherData"] == {"dropped": 1}
    names, events = ([event for event in written["traceEvents"] if (event["ph"] == "M") is meta] for meta in (True, False))
    assert [event["name"] for event in events] == ["decode", "encode", "occupancy"]
    assert events[0]["args"] == {"slots": 3} and events[0]["dur"] >= 0 and all(event["pid"] == 1 for event in events)
    assert {event["args"]["name"] for event in names} == {"device 0", "pipeline 0"}
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


def test_nothing_is_kept_when_it_is_off():
    tracer = Tracer()
    with tracer.span("decode", "device"):
        tracer.count("x", 1)
    tracer.add("tool", "tool", 0, 1)
    assert tracer._events == []
