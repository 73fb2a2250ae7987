"""The gRPC edge: requests become commands, outcomes become responses."""
