"""What a type cannot express: values that do not go together, and what is set without effect."""

from __future__ import annotations

import ipaddress
import re

from incus_numa import quantities
from incus_numa.cpuset import CpuSet
from incus_numa.settings.tables import LEAST_PACE, ApiSettings, MemorySettings, Settings

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_settings(settings: Settings) -> tuple[str, ...]:
    """Problems that a type cannot express, one sentence each; empty when there are none."""
    problems = []
    try:
        CpuSet.parse(settings.placement.reserved_cpus)
    except ValueError as error:
        problems.append(f"placement.reserved_cpus: {error}; expected a kernel list such as 0-3,8")
    for name in ("sysfs", "procfs", "cgroup"):
        path = getattr(settings.host, name)
        if not path.startswith("/"):
            problems.append(f"host.{name} = {path!r}: expected an absolute path")
    if settings.server.socket and not settings.server.socket.startswith("/"):
        problems.append(f"server.socket = {settings.server.socket!r}: expected an absolute path or nothing")
    if not settings.daemon.run_dir.startswith("/"):
        problems.append(f"daemon.run_dir = {settings.daemon.run_dir!r}: expected an absolute path")
    if not settings.rebalance.journal.startswith("/"):
        problems.append(f"rebalance.journal = {settings.rebalance.journal!r}: expected an absolute path")
    problems += _check_api(settings.api)
    if settings.rebalance.bytes_per_second < LEAST_PACE:
        told = quantities.render_exactly(settings.rebalance.bytes_per_second)
        problems.append(f"rebalance.bytes_per_second = {told!r}: expected 1MiB or more")
    return (*problems, *_check_memory(settings.memory))


def parse_listen(text: str) -> tuple[str, int]:
    """Address and port of `127.0.0.1:9714` or `[::1]:9714`. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)|(localhost)):([0-9]{1,5})", text)
    try:
        if found is None or not 0 < int(found[4]) < 1 << 16:
            raise ValueError(text)
        return str(ipaddress.ip_address("127.0.0.1" if found[3] else found[1] or found[2])), int(found[4])
    except ValueError:
        raise ValueError("expected an address and a port such as 127.0.0.1:9714 or [::1]:9714") from None


def _check_api(api: ApiSettings) -> list[str]:
    """Paths, and whether what is reachable from outside is protected."""
    problems = []
    for name in ("socket", "token_file", "tls_certificate", "tls_key", "policy_file"):
        path = getattr(api, name)
        if not path.startswith("/") and (path or name in ("socket", "policy_file")):
            problems.append(f"api.{name} = {path!r}: expected an absolute path")
    problems += [
        f"api.hosts: {name!r}: expected a name without port, such as numa.example.org"
        for name in api.hosts
        if not _HOST.fullmatch(name)
    ]
    if api.tls_key and not api.tls_certificate:
        problems.append("api.tls_key: expected api.tls_certificate with it")
    if not api.listen:
        return problems
    try:
        address, _ = parse_listen(api.listen)
    except ValueError as error:
        return [*problems, f"api.listen = {api.listen!r}: {error}"]
    missing = [f"api.{name}" for name in ("token_file", "tls_certificate") if not getattr(api, name)]
    if missing and not ipaddress.ip_address(address).is_loopback:
        told = " and ".join(missing)
        problems.append(f"api.listen = {api.listen!r}: can be reached from outside; set {told}, or use 127.0.0.1")
    return problems


def list_unused(settings: Settings) -> tuple[str, ...]:
    """What is set but has no effect, one sentence each: not wrong, but perhaps not what was meant."""
    memory = settings.memory
    if memory.policy == "static" or not (memory.reserved_total or memory.reserved):
        return ()
    names = [name for name in ("reserved_total", "reserved") if getattr(memory, name)]
    told = " and ".join(f"memory.{name}" for name in names)
    return (f'{told}: ignored, because memory.policy is "none"; set memory.policy = "static" to keep memory',)


def _check_memory(memory: MemorySettings) -> tuple[str, ...]:
    """Whether static reservations are there and add up."""
    total, found = memory.reserved_total, sum(one.size_bytes for one in memory.reserved)
    if memory.policy == "none" or (found == total and found > 0):
        return ()
    if not found and not total:
        text = 'expected reservations: set memory.reserved_total and memory.reserved, or memory.policy = "none"'
        return (f"memory.policy = 'static': {text}",)
    off = f"{quantities.render_both(abs(found - total))} too {'much' if found > total else 'little'}"
    return (
        f"memory.reserved adds up to {quantities.render_both(found)}, which is {off}: expected the sum to be"
        f" memory.reserved_total = {quantities.render_both(total)}, or memory.reserved_total to be"
        f" {quantities.render_both(found)}",
    )
