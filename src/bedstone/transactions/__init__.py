"""Distributed transactions: one decision for work in several databases."""
