"""Lists the tools, or runs one of them on files without any model.

  pixelis tools list
  pixelis tools run zoom photo.jpg --args='{"bbox_2d": [100, 100, 400, 300]}' --out=zoomed
  pixelis tools run localize clip.mp4 --args='{"event": "scene_change"}'

Media are numbered 1, 2, ... in the order given; `media` is 1 if the arguments name neither a medium nor a region.
Coordinates run from 0 to 1000, times are seconds. Exit status: 0 the tool answered, 1 the tool host failed, 2 bad
input.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools_host.config import ToolsConfig
    from tools_host.environment import EpisodeEnvironment
    from tools_host.protocol import Observation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `list` and `run`."""
    actions = parser.add_subparsers(dest="action", metavar="{list,run}", required=True)
    listing = actions.add_parser("list", help="every tool, what it does and its arguments")
    listing.add_argument("--json", action="store_true", help="print the JSON schemas that a model is given")
    run = actions.add_parser("run", help="run one tool on files")
    run.add_argument("name", metavar="NAME", help="a tool's name, see `pixelis tools list`")
    run.add_argument("media", metavar="MEDIA", nargs="+", help="images and videos")
    run.add_argument("--args", metavar="JSON", default="{}", help="arguments of the call, a JSON object")
    run.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="also write observation.json, derived media, and the media with regions drawn",
    )
    for action in (listing, run):
        add_imports(action)


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Declares `--imports`, for tools of the user's own."""
    parser.add_argument(
        "--imports", metavar="MODULE,...", default="", help="modules of your own that register tools or back-ends"
    )


def run(args: argparse.Namespace) -> int:
    """Lists or runs."""
    from tools_host.config import ToolsConfig
    from tools_host.schema import TOOLS

    imports = parse_imports(args.imports)
    config = ToolsConfig(imports=imports)
    config.load()
    # A module of the user's own offers its tools by registering them; they stand behind ours.
    own = [name for name, tool in TOOLS.items() if name not in config.tools and tool.checks is None]
    config = ToolsConfig(imports=imports, tools=(*config.tools, *own))
    if args.action == "list":
        print(json.dumps(config.schemas(), indent=2) if args.json else _listing(config))
        return 0
    return _run_tool(args, config)


def parse_imports(text: str) -> tuple[str, ...]:
    """The modules of `--imports`, imported; raises UserError if one does not exist, or fails."""
    import importlib

    from pixelis_jax.commands.errors import UserError

    modules = tuple(name for name in text.split(",") if name)
    for name in modules:
        try:
            importlib.import_module(name)
        except (ImportError, TypeError) as error:  # TypeError: a relative name such as ".tools"
            raise UserError(f"--imports: there is no module {name!r}: {error}") from error
        except (Exception, SystemExit) as error:  # the module is the user's own program, which can raise anything
            raise UserError(f"--imports: {name}: {type(error).__name__}: {error}") from error
    return modules


def _listing(config: ToolsConfig) -> str:
    blocks = []
    for tool in map(config.tool, config.tools):
        arguments = "\n".join(
            f"    {argument.name}{'' if argument.required else '?'}: {argument.description}" for argument in tool.arguments
        )
        blocks.append(f"{tool.name} ({tool.paper})\n  {tool.description}\n{arguments}")
    return "\n\n".join(blocks)


def _run_tool(args: argparse.Namespace, config: ToolsConfig) -> int:
    from pixelis_jax.commands.errors import UserError
    from tools_host.environment import EpisodeEnvironment
    from tools_host.pool import InlinePool
    from tools_host.protocol import OUTAGE_CODES, ToolCall
    from tools_host.schema import TOOLS

    arguments = _arguments(args.args)
    tool = TOOLS[args.name]
    if tool.argument("media") is not None and not {"media", "region"} & set(arguments):
        arguments = {"media": 1, **arguments}
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out: {args.out} is not a directory")
    environment = EpisodeEnvironment(args.media, config)
    for note in environment.notes:
        print(note)
    observation = environment.run(ToolCall(name=args.name, arguments=arguments), InlinePool(config))
    if observation.error is not None and observation.error.code not in OUTAGE_CODES:
        hint = f"; {observation.error.hint}" if observation.error.hint else ""
        raise UserError(f"{observation.error.code}: {observation.error.message}{hint}")
    print(observation.text)
    if observation.data:
        print(json.dumps(dict(observation.data), ensure_ascii=False))
    if args.out is not None:
        _write(args.out, environment, observation)
    return 0 if observation.ok else 1


def _arguments(text: str) -> dict[str, Any]:
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.trajectory import TrajectoryError, strict_json

    try:
        value = strict_json(text)
    except TrajectoryError as error:
        raise UserError(f"--args is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError("--args must be a JSON object, e.g. '{\"bbox_2d\": [0, 0, 500, 500]}'")
    return value


def _write(directory: Path, environment: EpisodeEnvironment, observation: Observation) -> None:
    from pixelis_jax.report.drawing import draw_regions, save_png
    from pixelis_jax.trajectory.codec import to_json
    from pixelis_jax.trajectory.io import AtomicFile

    directory.mkdir(parents=True, exist_ok=True)
    record = {"media": to_json(environment.media), "observation": to_json(observation)}
    with AtomicFile(directory / "observation.json") as file:
        file.write((json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())
    for media_id in observation.media:
        save_png(directory / f"media-{media_id}.png", environment.pixels(media_id))
    for media_id, time_s in sorted({(region.media, region.time_s) for region in observation.regions}, key=str):
        regions = [region for region in observation.regions if (region.media, region.time_s) == (media_id, time_s)]
        name = f"regions-{media_id}" + ("" if time_s is None else f"-{time_s:.2f}s") + ".png"
        save_png(directory / name, draw_regions(environment.pixels(media_id, time_s), regions))
    print(f"written to {directory}")
