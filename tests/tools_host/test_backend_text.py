import cv2
import numpy as np
import pytest
from scenes import card, photo

from tools_host.backend import BACKENDS
from tools_host.backends import load_rapidocr
from tools_host.backends.base import Line
from tools_host.backends.rapid import reading_order, single_line
from tools_host.benchmark import LETTERS


@pytest.fixture(scope="module")
def reader():
    return load_rapidocr()


def test_codes_on_cards_with_loose_boxes(reader) -> None:
    rng, right = np.random.default_rng(0), 0
    for trial in range(20):
        image = photo(trial % 4)
        code = "".join(rng.choice(list(LETTERS), rng.integers(3, 7)))
        x1, y1, x2, y2 = card(image, code, (60, 100), float(rng.uniform(0.6, 1.6)))
        margin = int(0.2 * (y2 - y1))
        lines = reader.read(image[y1 - margin : y2 + margin, x1 - margin : x2 + margin])
        right += [line.text for line in lines] == [code]
    assert right >= 19


def test_one_line_needs_no_detector(reader, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(0)
    x1, y1, x2, y2 = card(image, "KX7P2", (60, 100))
    monkeypatch.setattr(reader, "_detect", lambda _: pytest.fail("the detector ran"))
    assert [line.text for line in reader.read(image[y1 + 1 : y2, x1 + 1 : x2])] == ["KX7P2"]


def test_lines_of_a_page_in_reading_order(reader) -> None:
    page = np.full((200, 300, 3), 235, np.uint8)
    for text, corner in (("FIRST", (20, 50)), ("RIGHT", (170, 54)), ("SECOND", (20, 130))):
        cv2.putText(page, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.9, (20, 20, 20), 2, cv2.LINE_AA)
    lines = reader.read(page)
    assert " ".join(line.text for line in lines).split() == ["FIRST", "RIGHT", "SECOND"]
    for line in lines:
        x1, y1, x2, y2 = line.box_px
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200 and 0.6 <= line.score <= 1


@pytest.mark.parametrize("shape", [(60, 60), (3, 40), (200, 100)])
def test_a_plain_picture_has_no_text(reader, shape: tuple[int, int]) -> None:
    assert reader.read(np.full((*shape, 3), 128, np.uint8)) == ()


def test_an_earlier_call_does_not_change_a_later_one(reader) -> None:
    image = photo(0)
    card(image, "KX7P2", (60, 100))
    before = reader.read(image)
    reader.read(image[100:140, 60:200])
    assert reader.read(image) == before
    assert "KX7P2" in [line.text for line in before]


def test_reading_order_joins_lines_of_one_height() -> None:
    boxes = {"b": (50, 12, 90, 32), "a": (0, 10, 40, 30), "c": (0, 40, 40, 60)}
    lines = [Line(box_px=box, text=text, score=1.0) for text, box in boxes.items()]
    assert [line.text for line in reading_order(lines)] == ["a", "b", "c"]


def test_single_line_refuses_two_lines_and_a_busy_rim() -> None:
    page = np.full((100, 200, 3), 240, np.uint8)
    cv2.putText(page, "ABC", (40, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
    box = single_line(page)
    assert box is not None and box[0] <= 42 and box[2] >= 95 and box[1] < 25 and box[3] > 38
    cv2.putText(page, "DEF", (40, 85), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
    assert single_line(page) is None
    assert single_line(photo(0)) is None


def test_weights_are_hashed() -> None:
    digest = BACKENDS["ocr/rapidocr"].weights_sha256({})
    assert digest is not None and len(digest) == 64
    assert BACKENDS["segment/grabcut"].weights_sha256({}) is None
