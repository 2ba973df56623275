"""What `ask`, `eval` and `demo` share: a policy with its tools, ready to run episodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixelis_jax.commands.models import Loaded
    from pixelis_jax.rollout.agent import Agent, Request
    from pixelis_jax.rollout.tracing import Tracer
    from pixelis_jax.trajectory import Step

TIMEOUT_S = 60.0
"""Longest a call may take; the first call of a tool also loads its model."""


@contextlib.contextmanager
def agent(
    loaded: Loaded,
    *,
    slots: int = 1,
    workers: int = 1,
    imports: tuple[str, ...] = (),
    grammar: bool = False,
    on_step: Callable[[Request, Step], None] | None = None,
    tracer: Tracer | None = None,
) -> Iterator[Agent]:
    """An agent whose tool workers live as long as the context.

    Args:
      loaded: The policy.
      slots: Episodes that run together.
      workers: Tool processes.
      imports: Modules of the user's own that register tools.
      grammar: Whether requests may constrain their calls.
      on_step: Called with each step as it happens.
      tracer: Takes spans and counters.
    """
    from pixelis_jax.rollout.agent import Agent, make_engine
    from tools_host.config import ToolsConfig
    from tools_host.pool import WorkerPool

    tools = ToolsConfig(boxes_in_text=loaded.encoder.prompt.boxes_in_text, imports=imports)
    engine = make_engine(
        loaded.model, loaded.encoder, slots=slots, capacity=loaded.encoder.prompt.context, grammar=grammar, tracer=tracer
    )
    with WorkerPool(tools, workers=workers, timeout_s=TIMEOUT_S) as pool:
        yield Agent(engine, loaded.encoder, pool, tools, policy=loaded.info, on_step=on_step, tracer=tracer)


def default_workers() -> int:
    """Tool processes for a batch of episodes: half the cores, the rest decodes."""
    return max(1, (os.cpu_count() or 2) // 2)
