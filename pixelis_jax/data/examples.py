"""Trajectories and captions as encoded examples: tokenised once, by the renderer that the rollout uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.data.captions import INKS, Ink, LookSample
from pixelis_jax.data.records import EncodedExample
from pixelis_jax.data.scenes.scene import BoxF
from pixelis_jax.encoding import Encoder, Thumbnail
from pixelis_jax.policy import mrope_positions
from pixelis_jax.trajectory import ACTION_ROLES, Role, TokenRecord, Trajectory, render_prompt, render_trajectory, render_turn
from pixelis_jax.trajectory.rendering import Segment, ToolsMode, VisionSegment
from tools_host.protocol import Media, ToolCall

ROLE_WEIGHTS: Mapping[Role, float] = {
    Role.THOUGHT: 1.0,
    Role.FORMAT: 1.0,
    Role.ANSWER: 1.5,
    Role.ARGUMENT: 2.0,
    Role.OPERATION: 3.0,
}
"""Weights of the imitation loss (`docs/algorithms.md`, section 1)."""

CONTENT_WEIGHT = 4.0
"""Of the word in a caption that says what a thing holds: it chooses the tool."""

OPERATIONS = ("zoom", "segment", "track", "ocr", "localize", "properties")
"""The classes of the operation head."""


def encode_look(sample: LookSample, encoder: Encoder) -> EncodedExample:
    """A caption or a question answered at once, as an encoded example; every token of the turn weighs 1."""
    times = sample.times_s
    thumbnail = encoder.image(sample.pixels) if times is None else encoder.video(sample.pixels, times.tolist())
    return encode_turn(thumbnail, sample.question, sample.turn, encoder, boxes=sample.boxes, inks=sample.inks)


def encode_turn(
    thumbnail: Thumbnail,
    question: str,
    turn: str,
    encoder: Encoder,
    *,
    boxes: Sequence[BoxF] = (),
    inks: Sequence[Ink] = (),
) -> EncodedExample:
    """One turn about one medium, without tools, as an encoded example.

    Args:
      thumbnail: What the model sees.
      question: Of the user.
      turn: The policy's.
      encoder: Of the policy that will be trained.
      boxes: What the turn's boxes are rounded from, in their order, 0..1000: targets of the box head, which is asked at every
        token of a thing's name and at the bracket that opens its box.
      inks: Boxes of strings, marks and bars with their words: targets of the patch head. In the turn those words weigh
        `CONTENT_WEIGHT`.
    """
    medium = Media(
        id=1,
        kind="video" if thumbnail.shown.times_s else "image",
        uri=None,
        sha256="",
        width=thumbnail.frames.shape[2],
        height=thumbnail.frames.shape[1],
        shown=thumbnail.shown,
    )
    segments = render_prompt(question, [medium], tools="none", style=encoder.prompt.style) + render_turn(turn, 0)
    example = _example(segments, {1: thumbnail}, encoder, weights={role: 1.0 for role in ROLE_WEIGHTS}, imitated=[True])
    return {**example, **_pointed(example, boxes, inks, encoder)} if boxes or inks else example


def encode_trajectory(
    trajectory: Trajectory,
    thumbnails: Mapping[int, Thumbnail],
    encoder: Encoder,
    *,
    tools: ToolsMode,
    schemas: Sequence[Mapping[str, Any]],
) -> EncodedExample:
    """A whole episode as an encoded example.

    Args:
      trajectory: Its media have `shown` set.
      thumbnails: What the model saw of each medium.
      encoder: Of the policy that will be trained.
      tools: How the prompt names the tools; `none` is the no-tools condition.
      schemas: One function schema a tool.

    Returns:
      The arrays of `records.FIELDS`; tokens of steps with `imitate: false` weigh nothing.
    """
    segments = render_trajectory(trajectory, tools=tools, schemas=schemas, style=encoder.prompt.style)
    imitated = [step.imitate for step in trajectory.steps] + [True]
    calls = [step.call if step.imitate else None for step in trajectory.steps]
    return _example(segments, thumbnails, encoder, weights=ROLE_WEIGHTS, imitated=imitated, calls=calls)


def _example(
    segments: Sequence[Segment],
    thumbnails: Mapping[int, Thumbnail],
    encoder: Encoder,
    *,
    weights: Mapping[Role, float],
    imitated: Sequence[bool],
    calls: Sequence[ToolCall | None] = (),
) -> EncodedExample:
    chunk = encoder.encode(segments, thumbnails)
    table = np.zeros(max(Role) + 1, np.float32)
    table[list(weights)] = list(weights.values())
    mask = np.isin(chunk.roles, ACTION_ROLES) & np.append(imitated, False)[chunk.turns]
    shown = [(segment.media, segment.frame) for segment in segments if isinstance(segment, VisionSegment)]
    return {
        "ids": chunk.ids,
        "roles": chunk.roles,
        "weights": (table[chunk.roles] * mask).astype(np.float32),
        "positions": chunk.positions,
        "visual_index": _count_visual(chunk.visual_index >= 0),
        "thumbs": _frames(shown, thumbnails, encoder),
        "grid": chunk.grid,
        **_targets(chunk.roles, chunk.turns, calls),
    }


def encode_record(record: TokenRecord, thumbnails: Mapping[int, Thumbnail], encoder: Encoder) -> EncodedExample:
    """A sampled episode as an encoded example, its tokens as they were sampled.

    Args:
      record: Of the episode.
      thumbnails: What the model saw of each medium.
      encoder: Of the policy that will be trained.

    Returns:
      The arrays of `records.FIELDS`; sampled tokens weigh 1, forced ones nothing, and the heads have nothing to say.
    """
    shown = [(int(media), int(frame)) for _, _, media, frame in record.media_spans]
    grids = [(1, *thumbnails[media].shown.grid[1:]) for media, _ in shown]
    visual = np.zeros(len(record.ids), bool)
    for start, end, _, _ in record.media_spans:
        visual[start:end] = True
    return {
        "ids": record.ids,
        "roles": record.roles,
        "weights": (np.isin(record.roles, ACTION_ROLES) & ~record.forced).astype(np.float32),
        "positions": mrope_positions(record.ids, grids, encoder.model)[0],
        "visual_index": _count_visual(visual),
        "thumbs": _frames(shown, thumbnails, encoder),
        "grid": np.asarray([grid[1:] for grid in grids], np.int32).reshape(-1, 2),
        **_targets(record.roles, np.full(len(record.ids), -1), ()),
    }


def _count_visual(visual: np.ndarray) -> np.ndarray:
    return np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32)


def _frames(shown: Sequence[tuple[int, int]], thumbnails: Mapping[int, Thumbnail], encoder: Encoder) -> np.ndarray:
    """Pixels of (medium, frame pair), padded to a square, uint8 `[F, 2, S, S, 3]`."""
    side = max((max(thumbnail.frames.shape[1:3]) for thumbnail in thumbnails.values()), default=0)
    frames = np.zeros((len(shown), encoder.processing.temporal_patch_size, side, side, 3), np.uint8)
    for frame, (media, index) in zip(frames, shown, strict=True):
        pair = encoder.pair(thumbnails[media], index)
        frame[:, : pair.shape[1], : pair.shape[2]] = pair
    return frames


def _pointed(example: EncodedExample, boxes: Sequence[BoxF], inks: Sequence[Ink], encoder: Encoder) -> dict[str, np.ndarray]:
    """What box and patch head should say of a caption, and its weights with those of the words for what things hold."""
    ids, turn = example["ids"], np.flatnonzero(example["weights"] > 0)
    opening, between = encoder.tokenizer.encode("a [")[-1], encoder.tokenizer.encode("a;")[-1]
    words = [encoder.tokenizer.encode(f"a {word}")[-1] for word in INKS]
    opened = [int(place) for place in turn if ids[place] == opening]
    if len(opened) != len(boxes):
        raise ValueError(f"a turn with {len(opened)} brackets for {len(boxes)} boxes")
    positions: list[int] = []
    targets: list[BoxF] = []
    for place, box in zip(opened, boxes, strict=True):
        ends = np.flatnonzero(ids[turn[0] : place] == between)
        first = int(turn[0] + ends[-1] + 1) if ends.size else int(turn[0])
        positions += range(first, place + 1)
        targets += [box] * (place + 1 - first)
    named, count = len(positions), len(positions) + len(inks)
    return {
        "weights": np.where(np.isin(ids, words), CONTENT_WEIGHT, 1).astype(np.float32) * example["weights"],
        "op_position": np.asarray([*positions, *[0] * len(inks)], np.int32),
        "op_id": np.asarray([-1] * named + [-2 - INKS.index(word) for _, word in inks], np.int32),
        "box": np.asarray([*targets, *(box for box, _ in inks)], np.float32) / 1000,
        "box_valid": np.arange(count) < named,
        "point": np.zeros((count, 2), np.float32),
        "point_valid": np.zeros(count, bool),
        "span": np.zeros((count, 2), np.float32),
        "span_valid": np.zeros(count, bool),
    }


def _targets(roles: np.ndarray, turns: np.ndarray, calls: Sequence[ToolCall | None]) -> dict[str, np.ndarray]:
    """What the auxiliary heads should say at the last operation token of each imitated call."""
    found = [
        (int(np.flatnonzero((turns == turn) & (roles == Role.OPERATION))[-1]), call)
        for turn, call in enumerate(calls)
        if call is not None and call.name in OPERATIONS
    ]
    count = len(found)
    targets = {
        "op_position": np.asarray([position for position, _ in found], np.int32),
        "op_id": np.asarray([OPERATIONS.index(call.name) for _, call in found], np.int32),
    }
    for name, argument, width in (("box", "bbox_2d", 4), ("point", "point_2d", 2)):
        targets[name] = np.zeros((count, width), np.float32)
        targets[f"{name}_valid"] = np.zeros(count, bool)
        for row, (_, call) in enumerate(found):
            if argument in call.arguments:
                targets[name][row] = np.asarray(call.arguments[argument], np.float32) / 1000
                targets[f"{name}_valid"][row] = True
    # No tool of the tiny policy's chains takes a span; released ones give `localize` absolute seconds, not shares.
    return targets | {"span": np.zeros((count, 2), np.float32), "span_valid": np.zeros(count, bool)}
