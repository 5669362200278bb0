"""The kernel side of the agent: what it shares with the C sources, maps, programs, hooks, events."""
