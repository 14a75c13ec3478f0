"""Building blocks of protein models, one file per family; members of a family share a tensor interface.

``B`` batch, ``L`` length, ``D`` width, ``H`` heads; a mask is ``True`` where a token is real.
"""

from pyrosys.modules.attention import Attention
from pyrosys.modules.block import PreNormBlock
from pyrosys.modules.embedding import TokenEmbedding
from pyrosys.modules.feed_forward import FeedForward
from pyrosys.modules.head import ContactHead, LanguageModelHead, average_product_correction
from pyrosys.modules.position import LearnedPosition, RotaryPosition

__all__ = [
    "Attention",
    "ContactHead",
    "FeedForward",
    "LanguageModelHead",
    "LearnedPosition",
    "PreNormBlock",
    "RotaryPosition",
    "TokenEmbedding",
    "average_product_correction",
]
