"""An engine that says what a test wrote."""

import numpy as np

from pixelis_jax.rollout.engine import BlockResult, CacheFullError


class ScriptedEngine:
    """An engine whose turns were written beforehand: one script an episode, in the order in which they are submitted.

    A turn is its text, or its text and how it ended where that is not by the end token.
    """

    def __init__(self, encoder, scripts, *, slots=1, capacity=100_000, experts=False):
        self._encoder, self._scripts = encoder, [list(script) for script in scripts]
        self.slots, self.capacity, self._experts = slots, capacity, experts
        self._free, self._turns, self._length = list(range(slots))[::-1], {}, {}
        self._ready, self.version = set(), 0
        self.options, self.prompts = [], []

    @property
    def free_slots(self):
        return len(self._free)

    @property
    def busy(self):
        return bool(self._ready)

    def submit(self, prompt, options):
        self.prompts.append(prompt)
        self.options.append(options)
        script = self._scripts.pop(0)
        if len(prompt.ids) >= self.capacity:
            raise CacheFullError
        slot = self._free.pop()
        self._turns[slot], self._length[slot] = script, len(prompt.ids)
        self._ready.add(slot)
        return slot

    def room(self, slot):
        return self.capacity - 1 - self._length[slot]

    def layout(self, items):
        return []

    def extend(self, items, prefills):
        for slot, observation in items:
            assert slot not in self._ready and slot not in self._free
            assert len(observation.ids) <= self.room(slot)
            self._length[slot] += len(observation.ids)
            self._ready.add(slot)

    def release(self, slot):
        assert slot not in self._free
        self._ready.discard(slot)
        self._free.append(slot)

    def version_of(self, slot):
        return self.version

    def begin(self):
        pass

    def finish(self):
        results = []
        for slot in sorted(self._ready):
            turn = self._turns[slot].pop(0)
            text, ended = (turn + "<|im_end|>", "stop") if isinstance(turn, str) else turn
            ids = np.asarray(self._encoder.tokenizer.encode(text), np.int32)
            log_probs = -np.arange(1, len(ids) + 1, dtype=np.float32)
            self._length[slot] += len(ids)
            margins = -log_probs / 2 if self._experts else None
            nothing = np.zeros(len(ids), bool)
            results.append(BlockResult(slot=slot, ids=ids, log_probs=log_probs, forced=nothing, ended=ended, margins=margins))
        self._ready.clear()
        return results
