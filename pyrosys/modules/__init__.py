"""Building blocks of protein models, one file per family; the members of a family share a tensor interface.

``B`` batch, ``L`` length, ``D`` width, ``H`` heads, ``K`` neighbours; a mask is ``True`` where a token is real. What is
not itself a building block, such as a function on coordinates, is in the family's file.
"""

from pyrosys.modules.attention import Attention
from pyrosys.modules.block import PreNormBlock
from pyrosys.modules.embedding import TokenEmbedding
from pyrosys.modules.feed_forward import FeedForward
from pyrosys.modules.geometry import AlphaCarbonGeometry, BackboneGeometry
from pyrosys.modules.graph import EdgeEmbedding, GraphBlock, Message, NodeUpdate
from pyrosys.modules.head import ContactHead, LanguageModelHead, PropertyHead
from pyrosys.modules.position import LearnedPosition, RotaryPosition

__all__ = [
    "AlphaCarbonGeometry",
    "Attention",
    "BackboneGeometry",
    "ContactHead",
    "EdgeEmbedding",
    "FeedForward",
    "GraphBlock",
    "LanguageModelHead",
    "LearnedPosition",
    "Message",
    "NodeUpdate",
    "PreNormBlock",
    "PropertyHead",
    "RotaryPosition",
    "TokenEmbedding",
]
