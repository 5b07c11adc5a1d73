"""What long prompts do to the time between other requests' tokens."""
