"""Fidelity without labels: do a call's results hold when the same pixels are looked at again? (docs/ttrl.md)

Every distinct call of a group of trajectories is checked once, in the same worker processes that run the episodes' calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from pixelis_jax.rollout.probe_checks import CHECKS, Check, ProbeSettings, Result, Subject, spans_across
from pixelis_jax.trajectory import Trajectory, call_place, is_valid
from pixelis_jax.voting import CallFidelity
from tools_host.cache import ByteCache
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.media import MediaStore
from tools_host.protocol import OUTAGE_CODES, Region, Span, ToolCall, ToolError, ToolPool

_CHECK_TOOLS = ("track_back",)
_MEMO_ENTRY = 512  # bytes, generously: a key and three numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupFidelity:
    """Fidelity of the trajectories of one question.

    Attributes:
      calls: of each distinct valid call, in the order in which they first came up.
      steps: for each trajectory and each of its steps, the entry of `calls`; None for a step without a valid call. VisFid without
        ground truth is the mean of `fidelity` over these, where there is one.
      measured: for each trajectory the mean over its distinct calls that have a check, None if none has.
      fidelity: the same, with the median of the group in place of None, and `ProbeSettings.unknown` if there is no median.
    """

    calls: tuple[CallFidelity, ...]
    steps: tuple[tuple[CallFidelity | None, ...], ...]
    measured: tuple[float | None, ...]
    fidelity: tuple[float, ...]


@dataclasses.dataclass
class _Running:
    """A check that waits for results."""

    key: str
    tool: str
    check: Check
    futures: list[Future[Result]]


class Probes:
    """Checks calls.

    Args:
      pool: Runs the checks; made from `tools`.
      tools: As the trajectories had them.
      settings: Of the checks.
      store: Decoded pixels, shared with others.
      memo_bytes: Ceiling of the fidelities remembered by the calls' hashes.
    """

    def __init__(
        self,
        pool: ToolPool,
        tools: ToolsConfig,
        *,
        settings: ProbeSettings | None = None,
        store: MediaStore | None = None,
        memo_bytes: int = 8 * 2**20,
    ) -> None:
        self._pool = pool
        self._tools = dataclasses.replace(tools, tools=(*tools.tools, *_CHECK_TOOLS))
        self._settings = settings or ProbeSettings()
        self._store = store or MediaStore(tools.cache_bytes)
        self._memo: ByteCache[CallFidelity] = ByteCache(memo_bytes)

    def measure(self, trajectories: Sequence[Trajectory], paths: Sequence[str]) -> GroupFidelity:
        """`begin`, and the result."""
        return self.begin(trajectories, paths).result()

    def begin(self, trajectories: Sequence[Trajectory], paths: Sequence[str]) -> PendingFidelity:
        """Submits the first calls of every check and returns; workers go on while the caller does other things.

        Args:
          trajectories: of one question; one alone will do.
          paths: files of the question's media.

        Returns:
          Whose `result()` waits for the rest.

        Raises:
          MediaError: a file cannot be read.
          ValueError: a trajectory is about other files.
        """
        environment = EpisodeEnvironment(list(paths), self._tools, store=self._store)
        keyed = [tuple(self._keyed(trajectory, environment)) for trajectory in trajectories]
        return PendingFidelity(self._pool, environment, trajectories, keyed, self._settings, self._memo)

    def _keyed(self, trajectory: Trajectory, root: EpisodeEnvironment) -> Iterator[tuple[str, str] | None]:
        """Tool and hash of the call of each step; None without a valid one."""
        hashes = [medium.sha256 for medium in trajectory.media if medium.parent is None]
        if hashes != [medium.sha256 for medium in root.media]:
            raise ValueError(f"{trajectory.id} is not about {', '.join(medium.uri or '' for medium in root.media)}")
        episode = EpisodeEnvironment([medium.uri or "" for medium in root.media], self._tools, store=self._store)
        episode.media, episode.regions = list(trajectory.media), list(_regions(trajectory).values())
        for step in trajectory.steps:
            request = episode.prepare(step.call) if step.call is not None and is_valid(step) else None
            if isinstance(request, ToolError):
                raise ValueError(f"{trajectory.id} has a valid call that its tool refuses: {request.message}")
            yield None if request is None else (request.tool, request.key)


class PendingFidelity:
    """Checks under way; made by `Probes.begin`."""

    def __init__(
        self,
        pool: ToolPool,
        environment: EpisodeEnvironment,
        trajectories: Sequence[Trajectory],
        keyed: Sequence[Sequence[tuple[str, str] | None]],
        settings: ProbeSettings,
        memo: ByteCache[CallFidelity],
    ) -> None:
        self._pool, self._environment, self._settings, self._memo = pool, environment, settings, memo
        self._trajectories, self._keyed = trajectories, keyed
        self._found: dict[str, CallFidelity] = {}
        self._running: list[_Running] = []
        for trajectory, keys in zip(trajectories, keyed, strict=True):
            for number, entry in enumerate(keys):
                if entry is not None and entry[1] not in self._found:
                    self._start(trajectory, number, *entry)

    def result(self) -> GroupFidelity:
        """Waits for all checks."""
        while self._running:
            self._advance(self._running.pop(0))
        self._compare_spans()
        steps = tuple(tuple(None if entry is None else self._found[entry[1]] for entry in keys) for keys in self._keyed)
        measured = tuple(map(_mean_fidelity, steps))
        known = [value for value in measured if value is not None]
        usual = float(np.median(known)) if known else self._settings.unknown
        return GroupFidelity(
            calls=tuple(self._found.values()),
            steps=steps,
            measured=measured,
            fidelity=tuple(usual if value is None else value for value in measured),
        )

    def _start(self, trajectory: Trajectory, number: int, tool: str, key: str) -> None:
        # Without a check, or until there is a result.
        self._found[key] = CallFidelity(key=key, tool=tool, raw=None, null=None, fidelity=None)
        if tool not in CHECKS:
            return
        if (known := self._memo.get(key)) is not None:
            self._found[key] = known
            return
        step = trajectory.steps[number]
        assert step.call is not None
        subject = Subject(
            call=step.call,
            observation=step.observation,
            media=trajectory.media,
            regions=_regions(trajectory),
        )
        check = CHECKS[tool](subject, self._settings, np.random.default_rng(_seed(key)))
        self._resume(_Running(key, tool, check, []), None)

    def _advance(self, running: _Running) -> None:
        results = [future.result() for future in running.futures]
        if any(isinstance(result, ToolError) and result.code in OUTAGE_CODES for result in results):
            running.check.close()  # the tool host's fault, which says nothing about the call: it stays without a check
        else:
            self._resume(running, results)

    def _resume(self, running: _Running, results: list[Result] | None) -> None:
        try:
            calls = next(running.check) if results is None else running.check.send(results)
        except StopIteration as stop:
            found = _fidelity(running.key, running.tool, *stop.value)
            self._found[running.key] = found
            self._memo.put(running.key, found, _MEMO_ENTRY)
        else:
            running.futures = [self._submit(call) for call in calls]
            self._running.append(running)

    def _submit(self, call: ToolCall) -> Future[Result]:
        request = self._environment.prepare(call)
        if not isinstance(request, ToolError):
            return self._pool.submit(request)
        refused: Future[Result] = Future()
        refused.set_result(request)
        return refused

    def _compare_spans(self) -> None:
        """Checks calls of `localize`, each against those of the other trajectories about the same video."""
        for root, trajectories in self._spans_by_video().items():
            duration_s = self._environment.media[root - 1].duration_s or 0.0
            for key in dict.fromkeys(key for spans in trajectories for key in spans):
                # An equal call of another trajectory agrees fully; one of those that made it is the call itself.
                first = next(number for number, spans in enumerate(trajectories) if key in spans)
                others = [list(spans.values()) for number, spans in enumerate(trajectories) if number != first]
                compared = spans_across(trajectories[first][key], others, duration_s, self._settings, _seed(key))
                if compared is not None:
                    self._found[key] = _fidelity(key, "localize", *compared)

    def _spans_by_video(self) -> dict[int, list[dict[str, tuple[Span, ...]]]]:
        """For each video, and each trajectory that called `localize` on it, the spans of its calls by their hashes."""
        videos: dict[int, list[dict[str, tuple[Span, ...]]]] = {}
        for trajectory, keys in zip(self._trajectories, self._keyed, strict=True):
            own: dict[int, dict[str, tuple[Span, ...]]] = {}
            for step, entry in zip(trajectory.steps, keys, strict=True):
                if entry is None or entry[0] != "localize" or step.call is None:
                    continue
                if (place := call_place(step.call, trajectory.media, _regions(trajectory))) is not None:
                    own.setdefault(place.root, {})[entry[1]] = step.observation.spans
            for root, spans in own.items():
                videos.setdefault(root, []).append(spans)
        return videos


def _fidelity(key: str, tool: str, raw: float, null: float) -> CallFidelity:
    lifted = max(0.0, (raw - null) / (1.0 - null)) if null < 1.0 else 0.0
    return CallFidelity(key=key, tool=tool, raw=float(raw), null=float(null), fidelity=float(lifted))


def _mean_fidelity(steps: Sequence[CallFidelity | None]) -> float | None:
    distinct = {call.key: call.fidelity for call in steps if call is not None and call.fidelity is not None}
    return float(np.mean(list(distinct.values()))) if distinct else None


def _regions(trajectory: Trajectory) -> Mapping[int, Region]:
    return {region.id: region for step in trajectory.steps for region in step.observation.regions}


def _seed(key: str) -> int:
    return int(key[:16], 16)
