"""Builds a data set of scenes on disk: examples, media and oracle traces, in closed shards that a second run skips.

Layout of `out_dir`: `SPLIT/media/*`, `SPLIT/examples-FAMILY-N.jsonl`, `SPLIT/traces-FAMILY-N.jsonl`; paths of media are
relative to the shard that names them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pixelis_jax.data.scenes import FAMILIES, SPLITS, Scene, Split, generate, reframe
from pixelis_jax.data.scenes.randomness import generator
from pixelis_jax.data.traces import STYLES, Style, make_example, oracle_trajectory
from pixelis_jax.data.workers import process_pool, single_thread
from pixelis_jax.trajectory import Example, Trajectory
from pixelis_jax.trajectory.io import read_examples, read_trajectories, write_examples, write_trajectories
from tools_host.config import ToolsConfig
from tools_host.media import MediaStore
from tools_host.pool import InlinePool
from tools_host.protocol import ToolPool

SHARD = 100
"""Scenes in a shard."""

TRACE_STYLES: Mapping[Style, float] = {"tools": 0.42, "direct": 0.22, "trap": 0.27, "self_correct": 0.09}
"""Shares of the styles among training traces: at least a fifth without tools (`docs/algorithms.md`, section 6)."""

_STORE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A unit of work: scenes `start` to `stop` of a family and split, and how to trace them (no styles: not at all)."""

    directory: Path
    split: Split
    family: str
    start: int
    stop: int
    seed: int
    styles: Mapping[Style, float]
    reframed: float
    config: ToolsConfig

    @property
    def number(self) -> int:
        """Position within family and split; part of the file names."""
        return self.start // SHARD

    def path(self, kind: str) -> Path:
        """Path of its `examples` or `traces`."""
        return self.directory / self.split / f"{kind}-{self.family}-{self.number:05d}.jsonl"

    def is_done(self) -> bool:
        """Whether it was written, with as many examples as asked for now. Examples are written last."""
        path = self.path("examples")
        return path.exists() and sum(1 for line in path.read_bytes().split(b"\n") if line) == self.stop - self.start


def build(
    out_dir: str | Path,
    split: Split,
    counts: Mapping[str, int],
    workers: int = 2,
    *,
    seed: int = 0,
    styles: Mapping[Style, float] | None = None,
    reframed: float = 0.0,
    config: ToolsConfig | None = None,
) -> Iterator[Shard]:
    """Writes what is missing, and yields each shard when it is on disk (those that were there first).

    A shard counts as there by its number of scenes: a folder that other styles or shares made keeps what they made.

    Args:
      out_dir: See the module; made if absent.
      split: `train`, `val`, `test` or `shift`.
      counts: Scenes by family.
      workers: Processes; 0 works in this one.
      seed: Of the scenes.
      styles: Shares of trace styles; by default `TRACE_STYLES` for train and none for the other splits. `{}` writes no
        traces.
      reframed: Share of the scenes that are made narrower or lower, or cut down to a close-up (`scenes.reframe`).
      config: Tools that traces run; its observations are what the policy will read.

    Raises:
      KeyError: If there is no such family.
      ValueError: If a split, style, share or count is impossible.
    """
    shards = _plan(Path(out_dir), split, counts, seed, styles, reframed, config or ToolsConfig(boxes_in_text=False))
    yield from (shard for shard in shards if shard.is_done())
    missing = [shard for shard in shards if not shard.is_done()]
    if workers == 0:
        yield from map(write_shard, missing)
        return
    with process_pool(workers, initializer=single_thread) as executor:
        for done in concurrent.futures.as_completed([executor.submit(write_shard, shard) for shard in missing]):
            yield done.result()


def write_shard(shard: Shard) -> Shard:
    """Generates a shard's scenes, traces those that have a style, writes traces, then examples; returns the shard."""
    directory = shard.directory / shard.split
    pool = InlinePool(shard.config) if shard.styles else None
    store = MediaStore(_STORE_BYTES)
    examples: list[Example] = []
    trajectories: list[Trajectory] = []
    for index in range(shard.start, shard.stop):
        scene = generate(shard.family, shard.split, index, shard.seed)
        rng = generator(f"{shard.family}/reframed", shard.split, index, shard.seed)
        scene = reframe(scene, shard.reframed, rng)
        example = make_example(scene, directory)
        examples.append(example)
        if pool is not None:
            trajectory = _trace(shard, scene, example, directory, pool, store)
            # Only chains that came out right are worth imitating.
            if trajectory.scores["task"] == 1.0:
                trajectories.append(trajectory)
    if shard.styles:
        write_trajectories(shard.path("traces"), trajectories)
    write_examples(shard.path("examples"), examples)
    return shard


def load_examples(directory: str | Path, split: Split) -> Iterator[tuple[Path, Example]]:
    """Examples of a built split in order, each with the folder that its media paths start from."""
    folder = Path(directory) / split
    for path in sorted(folder.glob("examples-*.jsonl")):
        for example in read_examples(path):
            yield folder, example


def load_traces(directory: str | Path, split: Split) -> Iterator[tuple[Path, Trajectory]]:
    """Traces of a built split, each with the folder that its media's uris start from."""
    for path in trace_files(directory, split):
        for trajectory in read_trajectories(path):
            yield path.parent, trajectory


def trace_files(directory: str | Path, split: Split) -> list[Path]:
    """The shards of a built split's traces, in order."""
    return sorted((Path(directory) / split).glob("traces-*.jsonl"))


def _plan(
    out_dir: Path,
    split: Split,
    counts: Mapping[str, int],
    seed: int,
    styles: Mapping[Style, float] | None,
    reframed: float,
    config: ToolsConfig,
) -> list[Shard]:
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if not 0 <= reframed <= 1:
        raise ValueError(f"reframed is a share, got {reframed}")
    styles = (TRACE_STYLES if split == "train" else {}) if styles is None else styles
    if set(styles) - set(STYLES) or any(share < 0 for share in styles.values()):
        raise ValueError(f"styles must be shares of {', '.join(STYLES)}, got {dict(styles)}")
    shards = []
    for family, count in counts.items():
        _ = FAMILIES[family]  # Raises for an unknown one before any work is done.
        if count < 0:
            raise ValueError(f"{family}: cannot make {count} scenes")
        for start in range(0, count, SHARD):
            shards.append(
                Shard(
                    directory=out_dir,
                    split=split,
                    family=family,
                    start=start,
                    stop=min(start + SHARD, count),
                    seed=seed,
                    styles=dict(styles),
                    reframed=reframed,
                    config=config,
                )  # fmt: skip
            )
    return shards


def _trace(shard: Shard, scene: Scene, example: Example, directory: Path, pool: ToolPool, store: MediaStore) -> Trajectory:
    rng = generator(f"{shard.family}/trace", shard.split, scene.index, shard.seed)
    names = list(shard.styles)
    shares = np.array([shard.styles[name] for name in names], float)
    style = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    return oracle_trajectory(scene, example, directory, pool, config=shard.config, style=style, rng=rng, store=store)
