"""The six tools of the paper, and one that checks another. Importing this registers them and their back-ends."""

from tools_host import backends
from tools_host.tools.localize import localize
from tools_host.tools.ocr import ocr
from tools_host.tools.properties import properties
from tools_host.tools.segment import segment
from tools_host.tools.track import track, track_back
from tools_host.tools.zoom import zoom

__all__ = ["backends", "localize", "ocr", "properties", "segment", "track", "track_back", "zoom"]
