"""The HTTP door of the gateway: keys, limits, streams; what is said is in gateway/openai."""
