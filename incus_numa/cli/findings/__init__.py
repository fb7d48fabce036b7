"""What `check` finds: about the host, the server, instances' keys, and what runs. Pure: values in, findings out."""
