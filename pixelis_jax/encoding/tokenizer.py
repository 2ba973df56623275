"""A Hugging Face `tokenizer.json` as the rest of the project needs it: text to ids, and the bytes of each id."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from etils import epath
from tokenizers import Tokenizer


class TextTokenizer:
    """Encodes without adding anything at the ends; special tokens in the text become their ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.token_bytes = _token_bytes(tokenizer)

    @classmethod
    def load(cls, directory: epath.PathLike) -> TextTokenizer:
        """Reads `tokenizer.json` from a model directory.

        Raises:
          ValueError: The file is missing or is no tokenizer.
        """
        path = epath.Path(directory) / "tokenizer.json"
        try:
            return cls(Tokenizer.from_str(path.read_text()))
        except FileNotFoundError:
            raise ValueError(f"{directory} has no tokenizer.json") from None
        except Exception as error:  # `tokenizers` raises bare Exception for a malformed file
            raise ValueError(f"{path} is no tokenizer that can be read: {error}") from error

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids, special tokens included; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes[int(token)] for token in ids).decode("utf-8", errors="replace")

    def id(self, token: str) -> int:
        """Id of a token that must exist.

        Raises:
          ValueError: The vocabulary has no such token.
        """
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return index

    @property
    def added_ids(self) -> list[int]:
        """Ids of tokens that stand for no text of their own: special tokens and markup."""
        return sorted(self._tokenizer.get_added_tokens_decoder())

    @property
    def size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """The reversible map of byte-level BPE: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    added = {index: token.content.encode() for index, token in tokenizer.get_added_tokens_decoder().items()}
    table = _byte_of_char()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for piece, index in vocabulary.items():
        pieces[index] = added[index] if index in added else bytes(table[char] for char in piece)
    return pieces
