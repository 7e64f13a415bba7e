"""What surrounds recurrent layers in a model: batches of sequences, attention, search, n-grams,
initial values.

Everything here is plain torch, for use with fastrnn's modules and with torch.nn's.
"""

from __future__ import annotations

from . import init
from .attention import (
    AdditiveScore,
    Attention,
    DotScore,
    GeneralScore,
    Memory,
    length_mask,
    masked_softmax,
)
from .batching import LengthBuckets, SymbolTable, pad
from .ngram import NGramModel
from .search import Hypothesis, beam_search, greedy_search

__all__ = [
    "AdditiveScore",
    "Attention",
    "DotScore",
    "GeneralScore",
    "Hypothesis",
    "LengthBuckets",
    "Memory",
    "NGramModel",
    "SymbolTable",
    "beam_search",
    "greedy_search",
    "init",
    "length_mask",
    "masked_softmax",
    "pad",
]
