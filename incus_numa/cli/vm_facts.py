"""What `explain` says about the threads and the memory of a virtual machine, for people."""

from __future__ import annotations

from typing import Any

from incus_numa.facts.words import show_nodes


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    vm = facts["vm"]
    if vm is None:
        return []
    if vm["pid"] is None:
        return [("threads", "its QEMU process was not found")]
    text = "its vCPUs were not told from other threads, so all are placed on its nodes"
    if vm["vcpus_found"]:
        text = f"vCPUs on CPUs {facts['has_cpus']}, all others on CPUs {vm['others_cpus'] or 'unknown'}"
    found = [("threads", text)]
    if vm["memory_bound"]:
        found.append(("guest memory", f"bound to {show_nodes(vm['memory_bound'])} by the server at start"))
    if vm["remote"]:
        found.append(("beware", vm["remote"]))
    return found
