"""Asks the shipped policy about material that no generator made, and replays what it did.

    python experiments/real_material.py --out=runs/real [--json=FILE]

Two scanned pages and a photograph from the wheel of scikit-image, two real clips from Debian's `opencv-doc`. Writes a trace and a
report for each. Whether a tool did the right thing is for a person to judge: docs/training.md says what we saw.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

CLIPS = Path("/usr/share/doc/opencv-doc/examples/data")
QUESTIONS = (
    ("page", "page.png", "What does the first line say?"),
    ("text", "text.png", "What does the first line say?"),
    ("photograph", "astronaut.png", "What is on the orange card?"),
    ("street", "vtest.avi", "Where does the ball that starts on the right end up?"),
    ("tree", "tree.avi", "When is the first cut?"),
)


def main() -> None:
    """Runs `pixelis ask`, `pixelis replay` and `pixelis report` for each question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where traces and reports go")
    parser.add_argument("--json", type=Path, help="also write a summary there")
    args = parser.parse_args()
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("scikit-image is not installed")
    pictures = Path(spec.submodule_search_locations[0]) / "data"
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, file, question in QUESTIONS:
        medium = (pictures if file.endswith(".png") else CLIPS) / file
        if not medium.exists():
            print(f"{name}: {medium.name} is not there (clips: apt-get install opencv-doc)")
            continue
        trace = args.out / f"{name}.jsonl"
        asked = pixelis("ask", str(medium), question, f"--trace={trace}")
        replayed = pixelis("replay", str(trace))
        pixelis("report", str(trace), f"--out={trace.with_suffix('.html')}")
        trajectory = json.loads(trace.read_text())
        calls = [{"call": step["call"], "observation": step["observation"]["text"][:200]} for step in trajectory["steps"]]
        rows.append({"name": name, "file": file, "question": question, "calls": calls, "answer": trajectory["answer"],
                     "ask": asked, "replay": replayed})  # fmt: skip
        print(f"{name}: {question} -> {trajectory['answer']!r}, replay {replayed}")
        for call in calls:
            print(f"    {json.dumps(call['call'])}\n        {call['observation']!r}")
    if args.json is not None:
        args.json.write_text(json.dumps({"command": "python experiments/real_material.py", "rows": rows}, indent=1) + "\n")


def pixelis(*arguments: str) -> int:
    """Runs a command; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "pixelis_jax", *arguments], stdout=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    main()
