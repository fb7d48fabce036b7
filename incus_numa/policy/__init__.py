"""Decisions, as pure functions from a snapshot to a plan and from a plan to steps."""
