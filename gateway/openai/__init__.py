"""OpenAI's API as values: requests to submits, the ledger's words to answers. No sockets."""
