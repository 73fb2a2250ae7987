"""What the programs share: settings from the environment, logs."""
