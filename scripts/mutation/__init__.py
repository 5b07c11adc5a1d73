"""Guards of the system, how each is taken away, and the tests that notice."""
