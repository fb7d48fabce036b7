"""Plans beside the best that is possible: sets of nodes tried one by one, and a MILP where there are too many.

`cases` makes machines and mixes, `batch`, `online`, `widths` and `near` each compare one promise, `report` prints all.
Run by `make bench`; one part by itself: `python -m tests.bench.reference batch --cases 100 --seed 7`.
"""
