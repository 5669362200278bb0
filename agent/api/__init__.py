"""Requests to a Gatehouse process over its UNIX socket. `client` for commands, `aio` and `server` for processes."""
