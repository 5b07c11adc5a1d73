"""What the balancer is worth: a static ratio of roles beside one that follows the load."""
