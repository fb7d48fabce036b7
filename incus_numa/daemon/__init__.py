"""The service: observes, plans and applies when something says "look again"."""
