"""Replays arrivals and departures on a machine, with our policies and the documented rules of the peers. Pure.

*stay*: one row of a trace, an instance from its arrival to its departure. *ground*: what every policy is given, the
machine and its usable CPUs. *placer*: a policy at work. *seat*: where a placer put an instance. Called by the command
`simulate` and by tests.
"""
