"""The DNS proxy: which names may be asked for, and what they were answered with."""
