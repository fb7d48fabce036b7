"""The daemon's API: REST, metrics, events as they happen, and the dashboard. It shows what a Host tells it."""
