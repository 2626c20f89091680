"""Traces: which are kept, where, and how they are found again."""
