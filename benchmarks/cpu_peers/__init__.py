"""Tandem beside other engines on this CPU: the same checkpoint, prompts and lengths, in one run."""
