"""Frozen values that the decisions are made from and of. Pure: no files, clock, random numbers or log."""
