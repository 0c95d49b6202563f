"""What tells the form of the pools that a step reads chosen rows of."""

from __future__ import annotations

from .chunk_layout import ChunkShape
from .page_layout import PageShape
from .paper_layout import PaperShape

PoolShape = PageShape | ChunkShape | PaperShape
