"""Speed and size, against the goals of the project. `make bench`, or `PYTHONPATH=tests:tests/bpf python -m bench`.

Each measure is a module of its own: `measure(bench)` yields figures. All traffic stays in scratch namespaces.
"""
