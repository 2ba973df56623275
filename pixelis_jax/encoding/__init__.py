"""An episode as arrays: the tokenizer, what the model sees of each medium, and the tokens with their positions."""

from pixelis_jax.encoding.encoder import Chunk as Chunk
from pixelis_jax.encoding.encoder import Encoder as Encoder
from pixelis_jax.encoding.encoder import PromptConfig as PromptConfig
from pixelis_jax.encoding.encoder import Thumbnail as Thumbnail
from pixelis_jax.encoding.hashing import NEAR as NEAR
from pixelis_jax.encoding.hashing import frames_hash as frames_hash
from pixelis_jax.encoding.tokenizer import TextTokenizer as TextTokenizer
