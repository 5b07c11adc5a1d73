"""Small programs, each for one client, run in that client's own environment."""
