"""How fast a deployment would be: production policies, modelled devices, real traces."""
