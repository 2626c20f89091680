"""Bedstone: a trust-native application platform for Python teams."""

__version__ = "0.1.0"
