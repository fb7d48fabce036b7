"""`python -m incus_numa` is `incus-numa`."""

from incus_numa.cli.main import main

main()
