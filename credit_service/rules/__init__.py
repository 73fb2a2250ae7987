"""What every movement of credits does, as pure functions: no waiting, no database, no transport."""
