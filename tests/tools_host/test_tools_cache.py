"""The byte cache against a plain model of it."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from tools_host.cache import ByteCache


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 60)), max_size=60))
def test_the_ceiling_holds_and_the_oldest_go_first(steps: list[tuple[bool, int, int]]) -> None:
    cache: ByteCache[int] = ByteCache(100)
    model: OrderedDict[int, int] = OrderedDict()
    for is_put, key, size in steps:
        if is_put:
            cache.put(key, size, size)
            model.pop(key, None)
            model[key] = size
            while sum(model.values()) > 100:
                model.popitem(last=False)
        else:
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        assert cache.bytes == sum(model.values()) <= 100 and len(cache) == len(model)


def test_a_value_above_the_ceiling_is_not_kept() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put("small", "x", 5)
    cache.put("large", "y", 11)
    assert cache.get("large") is None and cache.get("small") == "x"
    cache.put("small", "z", 11)
    assert cache.get("small") is None and cache.bytes == 0
