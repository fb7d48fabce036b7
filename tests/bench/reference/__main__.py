"""One part of the reference by itself, with other counts and seeds."""

from __future__ import annotations

import sys

from tests.bench.reference import report

if __name__ == "__main__":
    report.main(sys.argv[1:])
