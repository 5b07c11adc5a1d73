"""Drives load at a running system and measures it; compares batch policies side by side."""
