"""Whether Gatehouse will work on a node, and why not: facts are read (gather), then judged (checks).

Nothing on the node is changed.
"""
