"""The configuration: one frozen type per TOML table, with defaults, meaning and limits beside each key. Pure.

`parse_settings` turns the text of `/etc/incus-numa/config.toml` into Settings or raises ConfigError with every
problem at once. `render_settings` writes every key with its meaning, which is how `examples/config.toml` is made.
"""

from incus_numa.settings.checking import check_settings, list_unused, parse_listen
from incus_numa.settings.over import FindMisfits, LeftOut, Overlay, Tables, halt, put_over, salvage_over
from incus_numa.settings.reading import parse_settings, read_tables, salvage_settings
from incus_numa.settings.tables import (
    LIVE_TABLES,
    RESTART_KEYS,
    ApiSettings,
    DaemonSettings,
    HostSettings,
    MemorySettings,
    MetricsSettings,
    PlacementSettings,
    RebalanceSettings,
    Reservation,
    ServerSettings,
    Settings,
)
from incus_numa.settings.writing import render_settings, settings_as_dict

__all__ = [
    "LIVE_TABLES",
    "RESTART_KEYS",
    "ApiSettings",
    "DaemonSettings",
    "FindMisfits",
    "HostSettings",
    "LeftOut",
    "MemorySettings",
    "MetricsSettings",
    "Overlay",
    "PlacementSettings",
    "RebalanceSettings",
    "Reservation",
    "ServerSettings",
    "Settings",
    "Tables",
    "check_settings",
    "halt",
    "list_unused",
    "parse_listen",
    "parse_settings",
    "put_over",
    "read_tables",
    "render_settings",
    "salvage_over",
    "salvage_settings",
    "settings_as_dict",
]
