"""Every message that crosses a process boundary: one module per link, one struct per message."""
