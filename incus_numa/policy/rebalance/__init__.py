"""Moves of running instances by measured load: who goes where, at what price, who stays and why. Pure.

`decision.decide` is called by the daemon and by `incus-numa rebalance`, `explain.explain` by `incus-numa explain`. The
argument why this cannot go back and forth is in `potential`.
"""
