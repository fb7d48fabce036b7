"""What is known about the host and its instances, as plain values: for commands and for the API."""
