"""The file formats, by the names in a layout."""

from ..image_files import SUFFIXES
from ..layout import Layout
from .folder import FolderFormat, Numbered
from .format import Format
from .geneval import GenEvalFormat
from .npz import Npz
from .parquet import Parquet
from .sharded import ShardedFormat
from .webdataset import WebDataset


def format_of(layout: Layout) -> Format:
    """The format of a run with this layout."""
    suffix = SUFFIXES[layout.image_type.name]
    match layout.format:
        case "folder":
            return FolderFormat(Numbered(), suffix)
        case "geneval":
            return GenEvalFormat(layout.prompts, suffix)
        case "webdataset":
            return ShardedFormat(WebDataset(), layout)
        case "parquet":
            return ShardedFormat(Parquet(), layout)
        case "npz":
            return ShardedFormat(Npz(), layout)
    raise AssertionError(layout.format)
