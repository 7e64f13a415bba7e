"""Parts that recurrent models are built from."""

from . import init

__all__ = ["init"]
