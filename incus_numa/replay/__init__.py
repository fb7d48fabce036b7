"""Replays arrivals and departures on a machine, with our policies and the documented rules of the peers. Pure.

*stay*: one row of a trace, an instance from its arrival to its departure. *ground*: what every policy is given, the
machine and its usable CPUs. *placer*: a policy at work. *steward*: one that may also seat instances elsewhere while
they run, when it *looks* at what they use. *seat*: where an instance was put. Called by the command `simulate`, by
the benchmark and by tests.
"""
