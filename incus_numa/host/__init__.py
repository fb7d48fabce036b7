"""The kernel side of a running instance: its cgroup and processes. The only writers outside the server's API."""
