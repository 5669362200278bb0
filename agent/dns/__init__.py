"""The DNS proxy as a process beside the agent, and the agent's side of it."""
