"""Policies beside each other, and the simulator beside the real system."""
