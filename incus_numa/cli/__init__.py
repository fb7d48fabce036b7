"""The `incus-numa` command."""
