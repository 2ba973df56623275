"""The six tools of the paper, in the order in which a policy is offered them. Importing this registers them and their back-ends."""

from tools_host import backends
from tools_host.tools.zoom import zoom
from tools_host.tools.segment import segment
from tools_host.tools.track import track
from tools_host.tools.ocr import ocr
from tools_host.tools.localize import localize
from tools_host.tools.properties import properties

__all__ = ["backends", "localize", "ocr", "properties", "segment", "track", "zoom"]
