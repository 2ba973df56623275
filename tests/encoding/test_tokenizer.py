"""Bytes of ids, against the `tokenizers` library's own decoder."""

import pytest
from tokenizers import Tokenizer, decoders, models

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.encoding import TextTokenizer

LIBRARY = tiny_tokenizer.build(tiny_tokenizer.corpus(["Zürich – 東京"]))
TOKENIZER = TextTokenizer(LIBRARY)


def test_every_id_decodes_as_the_library_decodes_it():
    assert len(TOKENIZER.token_bytes) == TOKENIZER.size == LIBRARY.get_vocab_size()
    for token, piece in enumerate(TOKENIZER.token_bytes):
        assert piece and TOKENIZER.decode([token]) == LIBRARY.decode([token], skip_special_tokens=False), token


def test_every_byte_is_a_token():
    assert {piece for piece in TOKENIZER.token_bytes if len(piece) == 1} == {bytes([byte]) for byte in range(256)}


def test_a_character_may_be_cut_and_put_together_again():
    ids = TOKENIZER.encode("山")
    assert len(ids) == 3 and TOKENIZER.decode(ids) == "山"
    assert b"".join(TOKENIZER.token_bytes[token] for token in ids) == "山".encode()
    assert TOKENIZER.decode(ids[:2]) == "\N{REPLACEMENT CHARACTER}"


def test_ids_that_the_vocabulary_skips_have_no_bytes():
    sparse = Tokenizer(models.BPE(vocab={"a": 0, "b": 3}, merges=[]))
    sparse.decoder = decoders.ByteLevel()
    assert TextTokenizer(sparse).token_bytes == [b"a", b"", b"", b"b"]


def test_a_file_round_trips(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json())
    again = TextTokenizer.load(tmp_path)
    text = "<tool_call>\n<|im_end|> look 20, 40"
    assert again.encode(text) == TOKENIZER.encode(text) and again.token_bytes == TOKENIZER.token_bytes


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer that can be read"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no token '<|box|>'".replace("|", r"\|")):
        TOKENIZER.id("<|box|>")
