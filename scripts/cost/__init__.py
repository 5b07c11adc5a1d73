"""What checksums, encryption and acknowledgements cost, measured side by side."""
