"""Trajectories by hand for the tests of the vote."""

from pixelis_jax.trajectory import Source, Step, Trajectory
from tools_host.protocol import Media, Observation, ToolCall, ToolError

PICTURE = Media(id=1, kind="image", uri="a.png", sha256="", width=1000, height=1000)


def step(name: str, box: tuple[int, int, int, int], ok: bool = True) -> Step:
    call = ToolCall(name=name, arguments={"media": 1, "bbox_2d": list(box)})
    error = None if ok else ToolError(code="bad_box", message="no")
    return Step(raw="", thought="", call=call, observation=Observation(ok=ok, text="", error=error))


def trajectory(answer: str | None, *steps: Step, stopped: str = "answer", name: str = "t") -> Trajectory:
    return Trajectory(
        id=name,
        example="e",
        question="?",
        media=(PICTURE,),
        steps=steps,
        final=None,
        answer=answer,
        stopped=stopped,  # type: ignore[arg-type]
        source=Source(dataset="d"),
    )


def same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()
