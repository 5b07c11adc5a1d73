"""The fault matrix: real processes and sockets, killed, frozen and wedged nodes, a bad network."""
