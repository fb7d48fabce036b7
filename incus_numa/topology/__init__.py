"""Reads the machine: sysfs is the truth, `/1.0/resources` adds what only the server knows."""
