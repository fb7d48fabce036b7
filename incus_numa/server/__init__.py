"""Incus and LXD behind one Protocol: REST, lifecycle events, decoding. Nothing else talks to the server."""
