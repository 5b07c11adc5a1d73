"""What every process and every user runs on: messages, sockets, states, config, the client."""
