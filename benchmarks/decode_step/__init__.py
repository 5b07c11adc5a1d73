"""Where the time of a node's step goes, stage by stage."""
