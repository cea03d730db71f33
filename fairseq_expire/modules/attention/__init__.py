"""Attention of a block over its memory."""

from fairseq_expire.modules.attention.tiled import attend

__all__ = ["attend"]
