"""Decentralised autoregressive generation as discrete flow matching, one function per equation."""

__version__ = "0.1.0"
