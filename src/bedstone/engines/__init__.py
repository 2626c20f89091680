"""Finds, starts, checks and stops the engines: Envoy and PostgreSQL, all under the supervisor."""
