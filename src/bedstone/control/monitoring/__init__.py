"""Monitoring: series by the second, queries, traces and alerts."""
