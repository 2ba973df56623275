"""The tokenizer of the tiny policy, made from the texts of its own traces.

A published tokenizer would spend most of a short episode on JSON. This one knows whole pieces of the call grammar, whole words,
and coordinates as one token each, while anything that is copied out of the pixels (random strings, measures) stays one
character a token. It is an ordinary Hugging Face `tokenizer.json`: a byte-level BPE without merges, in which a piece that is in
the vocabulary is one token (`ignore_merges`) and any other piece falls back to its bytes.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's special tokens, by the names that its released tokenizers give them."""

MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added tokens that are no special ones: they stay when special tokens are skipped in decoding, as in Qwen's tokenizers."""

COORDINATE_STEP = 20
"""Boxes in the tiny policy's traces are rounded to multiples of this (0..1000)."""

# Fixed text of a turn. The order matters: a regular expression takes the first alternative that fits.
_PHRASES = (
    '\n{"name": "',
    " [",
    '", "arguments": {"media": ',
    '", "arguments": {"region": ',
    ', "bbox_2d": [',
    '], "time_s": ',
    ', "time_s": ',
    '], "event": "',
    ', "event": "',
    '], "other": ',
    ', "other": ',
    ', "region": ',
    "]}}\n",
    '"}}\n',
    "}}\n",
    "<answer>",
    "</answer>",
)
_COORDINATE = r"\d{1,4}, (?=\d)|\d{1,4}(?=\])"
_WORD = r" ?[a-z_]{2,}|[A-Z][a-z]+"


def _escape(phrase: str) -> str:
    """Escapes what is special in the Oniguruma syntax that `tokenizers` uses."""
    return "".join("\\" + char if char in r"\{}[]().*+?^$|" else char for char in phrase)


def _pattern() -> str:
    return "|".join([*map(_escape, _PHRASES), _COORDINATE, _WORD, r"\s|\S"])


def build(texts: Iterable[str], *, size: int = 1024) -> Tokenizer:
    """Makes the tokenizer from rendered traces.

    Args:
      texts: Rendered episodes. Words are ranked by how often they occur, then by spelling, so that the result depends on the
        multiset of texts only.
      size: Most entries of the vocabulary, special tokens included; at most 2,048.

    Returns:
      A `tokenizers.Tokenizer`; `save(path)` writes `tokenizer.json`.

    Raises:
      ValueError: `size` has no room for the bytes and the grammar.
    """
    split = pre_tokenizers.Split(Regex(_pattern()), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces: list[str] = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = [*_PHRASES]
    for value in range(0, 1001, COORDINATE_STEP):
        fixed += [f"{value}, ", f"{value}"]
    for phrase in fixed:
        pieces += [piece for piece, _ in to_bytes.pre_tokenize_str(phrase)]
    pieces = list(dict.fromkeys(pieces))

    room = size - len(pieces) - len(SPECIAL_TOKENS) - len(MARKUP)
    if room < 0 or size > 2048:
        raise ValueError(f"a vocabulary of {size} has no room for {len(pieces)} fixed pieces, or is over 2048")
    known = set(pieces)
    counts: collections.Counter[str] = collections.Counter()
    words = pre_tokenizers.Sequence([split, to_bytes])
    for text in texts:
        counts.update(piece for piece, _ in words.pre_tokenize_str(text))
    # Numbers and strings are copied from what a tool returned, and must stay characters: only words enter the vocabulary.
    ranked = sorted(
        (piece for piece in counts if len(piece) > 1 and piece not in known and not any(c.isdigit() for c in piece)),
        key=lambda piece: (-counts[piece], piece),
    )
    pieces += ranked[:room]

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


OBSERVED_WORDS = (
    "nothing found stands out there no text region media crop frame overlay of at span ends end starts moves still steady "
    "left right above below top bottom center middle inside overlaps touches far near by deg orientation angle area px "
    "shape circle square triangle star cross ring diamond heart bar line round uniform striped noisy texture colour "
    "elongation distance size ratio times larger smaller red orange yellow green cyan blue purple white black grey gray "
    "pink brown mask score error bad_json unknown_tool too_many_calls missing_argument unknown_argument bad_type bad_box "
    "bad_time no_such_media no_such_region wrong_kind unreadable timeout worker_lost out_of_memory video image box are and "
    "is not an does exist only has have must be with in to from the seconds second cut cuts scene change motion appears "
    "appearance shows lights up lines left out more after down stays other"
)
"""Words that observations are made of."""

CALL_WORDS = (
    "zoom segment track ocr localize properties media region bbox_2d point_2d time_s until_s label event text start_s end_s "
    "other scene_change motion appearance tools name arguments"
)
"""Names of tools, their arguments and their choices."""


def corpus(looks: Iterable[str]) -> list[str]:
    """Texts for `build`: the given ones, and every word that tools say, often enough to enter the vocabulary."""
    words = f"{OBSERVED_WORDS} {CALL_WORDS}".split()
    # With and without a blank in front: a word is another piece at the start of a line.
    return [*looks, *(f"{word} {word}" for word in words * 20)]
