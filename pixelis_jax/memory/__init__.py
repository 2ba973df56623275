"""Past trajectories that can be retrieved: a durable store, an index of nearest neighbours, keys."""

from pixelis_jax.memory.errors import StoreError as StoreError
from pixelis_jax.memory.index import Index as Index
from pixelis_jax.memory.index import IndexConfig as IndexConfig
from pixelis_jax.memory.keys import KeyMaker as KeyMaker
from pixelis_jax.memory.memory import Memory as Memory
from pixelis_jax.memory.memory import MemoryConfig as MemoryConfig
from pixelis_jax.memory.memory import Neighbour as Neighbour
from pixelis_jax.memory.memory import Remembered as Remembered
from pixelis_jax.memory.memory import Shown as Shown
from pixelis_jax.memory.memory import next_value as next_value
from pixelis_jax.memory.records import Record as Record
from pixelis_jax.memory.store import Stamp as Stamp
from pixelis_jax.memory.store import Store as Store
from pixelis_jax.memory.store import Transaction as Transaction
from pixelis_jax.memory.store import discard as discard
