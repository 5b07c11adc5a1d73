"""Turns KV pages into the rest of the tokens: admission, continuous batching, emission."""
