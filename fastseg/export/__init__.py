"""Files of a segmenter that other runtimes run: ONNX, torch.export, AOTInductor, OpenVINO.

The network consists of torch's standard operators then (``backend="torch"``), and what prepares a
picture and what reduces the logits may be parts of it.
"""

from fastseg.export.compare import Comparison
from fastseg.export.errors import ExportError
from fastseg.export.formats import FORMATS
from fastseg.export.segmenter import Exported, Recipe, export_segmenter

__all__ = ["FORMATS", "Comparison", "ExportError", "Exported", "Recipe", "export_segmenter"]
