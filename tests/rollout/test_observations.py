"""The pipeline of completed calls: order, batches, state, faults."""

import threading
import time

import pytest

from pixelis_jax.rollout.observations import CompletedCalls, ObservationPipeline


def take(pipeline, count):
    """Results until `count` calls have come out."""
    batches = []
    while sum(len(batch) for batch, _ in batches) < count:
        batches += pipeline.take(block=True)
    return batches


def test_calls_come_out_encoded_in_the_order_in_which_they_completed():
    pipeline = ObservationPipeline(encode=lambda call: 10 * call, lay_out=sum, most=4)
    for call in range(20):
        pipeline.put(call)
    batches = take(pipeline, 20)
    assert [ready for batch, _ in batches for ready in batch] == [10 * call for call in range(20)]
    assert all(laid == sum(batch) and 1 <= len(batch) <= 4 for batch, laid in batches)
    assert pipeline.take(block=False) == []
    pipeline.close()


def test_what_has_completed_meanwhile_makes_one_batch_and_a_lone_call_does_not_wait():
    busy, go = threading.Event(), threading.Event()

    def encode(call):
        busy.set()
        go.wait(5)
        return call

    pipeline = ObservationPipeline(encode=encode, lay_out=len, most=4)
    pipeline.put(0)
    busy.wait(5)
    for call in range(1, 6):
        pipeline.put(call)
    go.set()
    assert [batch for batch, _ in take(pipeline, 6)] == [[0], [1, 2, 3, 4], [5]]
    pipeline.close()


def test_taking_without_blocking_returns_at_once():
    pipeline = ObservationPipeline(encode=lambda call: time.sleep(0.2) or call, lay_out=len, most=4)
    pipeline.put(1)
    began = time.monotonic()
    assert pipeline.take(block=False) == [] and time.monotonic() - began < 0.15
    assert pipeline.take(block=True) == [([1], 1)]
    pipeline.close()


def test_a_stage_that_fails_is_raised_where_the_result_is_wanted():
    def fail(call):
        raise OSError("the disk is gone")

    pipeline = ObservationPipeline(encode=fail, lay_out=len, most=4)
    pipeline.put(1)
    with pytest.raises(OSError, match="the disk is gone"):
        pipeline.take(block=True)
    pipeline.close()


def test_the_state_names_the_calls_that_are_not_yet_taken():
    pipeline = ObservationPipeline(encode=lambda call: call, lay_out=len, most=4)
    pipeline.expect("a/1")
    pipeline.expect("b/1")
    pipeline.put("a/1")
    pipeline.take(block=True)
    assert pipeline.state() == {"pending": ["a/1", "b/1"]}  # ready is not yet taken
    pipeline.taken("a/1")
    assert pipeline.state() == {"pending": ["b/1"]}
    pipeline.close()


def test_the_source_is_a_grain_dataset_that_counts_and_ends():
    source = CompletedCalls(most=2)
    for call in "abc":
        source.put(call)
    source.close()
    iterator = iter(source.map(lambda batch: "".join(batch)))
    assert next(iterator) == "ab" and iterator.get_state()
    assert list(iterator) == ["c"]
    empty = CompletedCalls(most=2)
    empty.close()
    assert list(empty) == []
