import dataclasses
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pixelis_jax.report import curves, drawing, tables, views, write_report
from pixelis_jax.report.sources import Traced, read_source
from pixelis_jax.trajectory import TrajectoryError, read_trajectories, write_trajectories
from tools_host.geometry import encode_mask
from tools_host.media import MediaStore
from tools_host.protocol import Region

GOLDEN = Path(__file__).parent.parent / "golden"
ROWS = [{"step": step, "time": 1e9, "loss": 2.0 / (step + 1), "kl/probe": 0.1} for step in range(20)]


@pytest.fixture
def workdir(tmp_path):
    directory = tmp_path / "run"
    (directory / "trajectories").mkdir(parents=True)
    for name in ("scene.png", "clip.mp4"):
        shutil.copy(GOLDEN / name, directory / "trajectories")
    shutil.copy(GOLDEN / "trace.jsonl", directory / "trajectories" / "eval-0-0.jsonl")
    (directory / "metrics-0-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "results.json").write_text(
        json.dumps({"table": {"base": {"accuracy": 0.125}, "tools": {"accuracy": 0.875}}, "items": [1] * 500})
    )
    (directory / "config.json").write_text(json.dumps({"optimizer": {"learning_rate": 0.002}}))
    return directory


def view(index):
    trajectory = list(read_trajectories(GOLDEN / "trace.jsonl"))[index]
    return views.view_trace(Traced(trajectory=trajectory, media_root=GOLDEN), "run", views.Pictures(), MediaStore())


def test_the_page_is_whole_and_needs_nothing_else(workdir):
    out = workdir / "report.html"
    write_report([workdir], out)
    page = out.read_text()
    parser = html.parser.HTMLParser()
    addresses: list[str] = []
    parser.handle_starttag = lambda tag, attributes: addresses.extend(
        v for k, v in attributes if k in ("src", "href", "srcset") and v
    )
    parser.feed(page)
    assert addresses and all(address.startswith(("data:image/webp;base64,", "#p")) for address in addresses)
    assert "default-src 'none'" in page and "<link" not in page and "@import" not in page and "url(" not in page
    for text in (
        "What is written on the card?",
        "HK3V9",
        "bad_box",
        "starts middle left",
        "0.875",
        "kl/probe",
        "0.002",
    ):
        assert text in page
    used, held = set(re.findall(r'<use href="#(p\d+)"', page)), set(re.findall(r'<image id="(p\d+)"', page))
    assert used == held


def test_every_step_is_drawn_on_the_pixels_that_it_was_about():
    zoom, ocr, unparsed, segment, properties, refused = view(0).steps
    assert [shot.picture.width for shot in zoom.shots] == [320, 148] and zoom.shots[1].derived
    assert zoom.shots[0].shapes[0].box == (160, 33, 148, 73)  # [500, 140, 960, 440] of 320 x 240, outwards
    found = next(shape for shape in ocr.shots[0].shapes if shape.kind == "found")
    x, y, w, h = found.box  # a region of the crop, in pixels of the original: around the letters
    assert 170 < x < 182 and 55 < y < 62 and 105 < w < 125 and 25 < h < 38 and "HK3V9" in found.label
    disc = next(shape for shape in segment.shots[0].shapes if shape.polygons)
    points = np.array([[float(v) for v in pair.split(",")] for pair in disc.polygons[0].split()])
    assert np.abs(np.hypot(*(points - (75, 80)).T) - 38).max() < 4
    assert properties.shots and unparsed.badges == ("bad_json",) and refused.badges == ("bad_box",) and not refused.shots


def test_a_video_step_shows_key_frames_path_and_timeline():
    localize, track, zoom = view(1).steps
    assert localize.timeline.spans[0][2] == "1.9–2 s" and localize.timeline.spans[0][0] == pytest.approx(63.3, abs=0.1)
    frames = [shot for shot in track.shots if not shot.derived]
    assert len(frames) == views.MAX_FRAMES and frames[0].caption.endswith("0.00 s") and frames[-1].caption.endswith("1.50 s")
    assert all(any(shape.kind == "path" for shape in shot.shapes) for shot in frames)
    assert all(sum(shape.kind == "found" for shape in shot.shapes) == 1 for shot in frames)
    assert len({shot.picture.id for shot in frames}) == len(frames)
    assert zoom.shots[0].caption.endswith("1.50 s")


def test_a_mask_in_a_crop_lies_in_the_original():
    trajectory = next(read_trajectories(GOLDEN / "trace.jsonl"))
    mask = np.zeros((73, 148), bool)
    mask[10:20, 30:50] = True
    region = Region(id=1, media=2, bbox_2d=(203, 137, 338, 274), mask=encode_mask(mask))
    ocr = trajectory.steps[1]
    changed = dataclasses.replace(ocr, observation=dataclasses.replace(ocr.observation, regions=(region,)))
    steps = (trajectory.steps[0], changed, *trajectory.steps[2:])
    traced = Traced(trajectory=dataclasses.replace(trajectory, steps=steps), media_root=GOLDEN)
    shown = views.view_trace(traced, "run", views.Pictures(), MediaStore()).steps[1].shots[0].shapes[-1]
    points = np.array([[float(v) for v in pair.split(",")] for pair in shown.polygons[0].split()])
    assert points.min(0).tolist() == [160 + 30.5, 33 + 10.5] and points.max(0).tolist() == [160 + 49.5, 33 + 19.5]


def test_foreign_text_is_escaped(tmp_path):
    trajectory = next(read_trajectories(GOLDEN / "trace.jsonl"))
    evil = "<script>alert(1)</script>\"'"
    step = dataclasses.replace(trajectory.steps[0], thought=evil)
    bad = dataclasses.replace(trajectory, question=evil, answer=evil, id=evil, steps=(step, *trajectory.steps[1:]))
    write_trajectories(tmp_path / "t.jsonl", [bad])
    write_report([tmp_path / "t.jsonl"], tmp_path / "r.html", media_root=GOLDEN)
    page = (tmp_path / "r.html").read_text()
    assert "alert(1)" in page and page.count("<script>") == 1


def test_a_trace_whose_files_are_gone_or_changed_is_still_shown(workdir):
    (workdir / "trajectories" / "scene.png").unlink()
    (workdir / "trajectories" / "clip.mp4").write_bytes(b"other")
    write_report([workdir], workdir / "r.html")
    page = (workdir / "r.html").read_text()
    assert "scene.png: No such file" in page and "clip.mp4: the file changed" in page and "HK3V9" in page


def test_a_damaged_medium_costs_its_pictures_and_no_more(workdir):
    trace = workdir / "trajectories" / "eval-0-0.jsonl"
    scene = workdir / "trajectories" / "scene.png"
    before = hashlib.sha256(scene.read_bytes()).hexdigest()
    scene.write_bytes(scene.read_bytes()[:300])
    trace.write_text(trace.read_text().replace(before, hashlib.sha256(scene.read_bytes()).hexdigest()))
    write_report([workdir], workdir / "r.html")
    page = (workdir / "r.html").read_text()
    assert "scene.png: damaged or truncated image" in page and "starts middle left" in page and "HK3V9" in page


@pytest.mark.parametrize(
    "arguments",
    [{"img_idx": 7, "bbox_2d": [0, 0, 9, 9]}, {"media": [1]}, {"media": 1, "region": {}}, {"media": 1, "time_s": 10**400}],
)
def test_a_call_that_could_not_have_been_valid_is_shown_all_the_same(arguments):
    gold = list(read_trajectories(GOLDEN / "trace.jsonl"))[0]
    zoom = gold.steps[0]
    step = dataclasses.replace(zoom, call=dataclasses.replace(zoom.call, arguments=arguments))
    traced = Traced(trajectory=dataclasses.replace(gold, steps=(step, *gold.steps)), media_root=GOLDEN)
    assert len(views.view_trace(traced, "run", views.Pictures(), MediaStore()).steps) == len(gold.steps) + 1


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_medium_of_another_kind_leaves_a_note(kind):
    gold = list(read_trajectories(GOLDEN / "trace.jsonl"))[kind == "image"]
    media = (dataclasses.replace(gold.media[0], kind=kind), *gold.media[1:])
    traced = Traced(trajectory=dataclasses.replace(gold, media=media), media_root=GOLDEN)
    notes = views.view_trace(traced, "run", views.Pictures(), MediaStore()).notes
    assert any("not a readable image" in note for note in notes)


def test_of_too_many_traces_the_wrong_ones_come_first(tmp_path):
    gold = next(read_trajectories(GOLDEN / "trace.jsonl"))
    items = [dataclasses.replace(gold, id=f"t{index}", scores={"task": float(index != 7)}) for index in range(10)]
    write_trajectories(tmp_path / "t.jsonl", items)
    write_report([tmp_path / "t.jsonl"], tmp_path / "r.html", media_root=GOLDEN, max_traces=3)
    page = (tmp_path / "r.html").read_text()
    assert page.count('<details class="trace"') == 3 and "3 of 10 trajectories" in page and "<span>t7</span>" in page
    assert "9 right of 10 judged" in page


def test_a_source_with_nothing_to_show_is_bad_input(tmp_path):
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(TrajectoryError):
            read_source(path)
    (tmp_path / "metrics-0-0.jsonl").write_text("{}\n")
    with pytest.raises(TrajectoryError, match="line 1: not a row"):
        read_source(tmp_path)


def test_shards_are_read_in_order_and_a_resumed_step_counts_once(tmp_path):
    for shard, steps in ((10, (4, 5)), (2, (1, 2, 4))):
        rows = [{"step": step, "loss": float(shard)} for step in steps]
        (tmp_path / f"metrics-0-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row["step"], row["loss"]) for row in read_source(tmp_path).metrics] == [(1, 2), (2, 2), (4, 10), (5, 10)]


def test_curves_lie_inside_their_chart_and_survive_odd_values():
    rows = [{"step": float(step), "x": value} for step, value in enumerate([1.0, float("nan"), -5.0, 1e9, 3.0] * 200)]
    flat = [{"step": float(step), "flat": 0.1} for step in range(3)]
    both = curves.charts([rows, flat, [{"step": 0.0, "once": 1.0}]])
    assert [chart.name for chart in both] == ["flat", "x"]
    for chart in both:
        for line in chart.lines:
            points = np.array([[float(v) for v in pair.split(",")] for pair in line.path[1:].split(" L")])
            assert len(points) <= curves.MAX_POINTS and np.isfinite(points).all()
            assert (points >= 0).all() and (points <= (curves.WIDTH, curves.HEIGHT)).all()
    assert both[0].lines[0].last == "0.1"


def test_tables_of_any_nesting():
    value = {
        "seed": 0,
        "table": {"a": {"x": 0.5, "ci": [0.4, 0.6]}, "b": {"x": 1, "ci": None}},
        "items": [{"i": i} for i in range(101)],
        "few": [{"k": True}],
    }
    made = {table.title: table for table in tables.tables("r", value)}
    assert set(made) == {"r", "r · table", "r · few"} and made["r"].rows == (("seed", "0"),)
    rows = made["r · table"]
    assert ("a", "0.500", "[0.400, 0.600]") in rows.rows and ("b", "1", "–") in rows.rows
    assert made["r · few"].rows == (("yes",),) and "r · items" not in made


def test_drawing_leaves_the_picture_alone_elsewhere():
    pixels = np.zeros((100, 100, 3), np.uint8)
    drawn = drawing.draw_regions(pixels, [Region(id=1, media=1, bbox_2d=(200, 200, 600, 600))])
    assert (drawn[20, 20:60] == (255, 61, 129)).all() and not drawn[70:].any() and not pixels.any()


def test_the_report_opens_without_jax():
    code = "import sys, pixelis_jax.report, pixelis_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
