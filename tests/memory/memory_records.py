"""Small records for the tests of the memory."""

from __future__ import annotations

import numpy as np

from pixelis_jax.memory import Record
from pixelis_jax.trajectory import Final, Source, Step, TokenRecord, Trajectory
from tools_host.protocol import Observation, ToolCall

DIM = 16


def unit(*numbers: float, dim: int = DIM) -> np.ndarray:
    """A key that begins with these numbers, brought to length 1."""
    key = np.zeros(dim, np.float32)
    key[: len(numbers)] = numbers
    return key / np.linalg.norm(key)


def at_cosine(cosine: float, axis: int = 1) -> np.ndarray:
    """A key with this cosine to `unit(1)`."""
    key = np.zeros(DIM, np.float32)
    key[0], key[axis] = cosine, np.sqrt(1 - cosine**2)
    return key


def make_record(
    name: str,
    key: np.ndarray | None = None,
    *,
    value: float = 0.5,
    phash: int | None = None,
    operations: tuple[str, ...] = ("zoom", "ocr"),
    fidelity: float = 0.75,
) -> Record:
    """A record of the query `name`; without a key, it has one drawn from the name."""
    if key is None:
        key = np.random.default_rng(list(name.encode())).standard_normal(DIM).astype(np.float32)
        key /= np.linalg.norm(key)
    steps = tuple(
        Step(
            raw="...",
            thought="look",
            call=ToolCall(name=operation, arguments={"media": 1, "bbox_2d": [0, 0, 500, 500]}),
            observation=Observation(ok=True, text=f"seen for {name}"),
        )
        for operation in operations
    )
    trajectory = Trajectory(
        id=f"t-{name}",
        example=name,
        question="What is it?",
        media=(),
        steps=steps,
        final=Final(raw="<answer>\u2028 4 €</answer>", thought=""),
        answer="4 €",
        stopped="answer",
        source=Source(dataset="test"),
    )
    return Record(
        key=key,
        phash=phash,
        query_id=name,
        query=f"What is {name}?",
        trajectory=trajectory,
        tokens=make_tokens(7),
        fidelity=fidelity,
        agreement=5,
        value=value,
    )


def make_tokens(count: int) -> TokenRecord:
    """Tokens whose numbers tell them apart."""
    return TokenRecord(
        ids=np.arange(count, dtype=np.int32),
        roles=np.full(count, 2, np.int8),
        log_probs=-np.arange(count, dtype=np.float32) / 8,
        forced=np.arange(count) % 2 == 0,
        policy_step=np.full(count, 3, np.int32),
        media_spans=np.array([[0, 2, 1, 0]], np.int32),
    )
