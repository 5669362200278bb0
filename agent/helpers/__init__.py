"""What works beside the agent, in containers of its own (--helpers containers): flows, dns, envoy, wireguard.

The agent writes what each is to run into a file of the state directory, which all of them share, and sees by its socket
whether it runs. `gatehouse helper NAME` waits for that file and keeps to it. Nothing relies on process numbers: each
container may have its own.
"""
