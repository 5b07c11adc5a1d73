"""What every decision-maker shares, all pure: views, plans, policies, targets, page hashes."""
