"""Turns prompts into KV pages and a first token: queue, chunks, shipping."""
