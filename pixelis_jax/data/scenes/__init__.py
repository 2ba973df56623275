"""Synthetic tasks: questions whose answers are known, which the thumbnail cannot answer and the tools can."""

from pixelis_jax.data.scenes.family import FAMILIES as FAMILIES
from pixelis_jax.data.scenes.family import Chain as Chain
from pixelis_jax.data.scenes.family import Conclusion as Conclusion
from pixelis_jax.data.scenes.family import Family as Family
from pixelis_jax.data.scenes.family import Place as Place
from pixelis_jax.data.scenes.family import Plan as Plan
from pixelis_jax.data.scenes.family import chain as chain
from pixelis_jax.data.scenes.family import generate as generate
from pixelis_jax.data.scenes.family import split_digest as split_digest
from pixelis_jax.data.scenes.scene import FPS as FPS
from pixelis_jax.data.scenes.scene import SPLITS as SPLITS
from pixelis_jax.data.scenes.scene import Scene as Scene
from pixelis_jax.data.scenes.scene import SceneObject as SceneObject
from pixelis_jax.data.scenes.scene import Split as Split
from pixelis_jax.data.scenes.scene import close_up as close_up
from pixelis_jax.data.scenes.scene import reframe as reframe
from pixelis_jax.data.scenes.scene import relative as relative
from pixelis_jax.data.scenes.scene import squeezed as squeezed

# Importing a family registers it; this is the order of tables.
from pixelis_jax.data.scenes import (  # isort: skip
    read as _read,  # noqa: F401
    shape as _shape,  # noqa: F401
    angle as _angle,  # noqa: F401
    where as _where,  # noqa: F401
    blink as _blink,  # noqa: F401
    cut as _cut,  # noqa: F401
    flash_read as _flash_read,  # noqa: F401
    flash_shape as _flash_shape,  # noqa: F401
    follow_read as _follow_read,  # noqa: F401
    page as _page,  # noqa: F401
)
