"""The front door: clients, tokenising, the ledger of live requests, exactly-once streams."""
