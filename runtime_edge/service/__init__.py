"""The long-running form of the edge: one configuration file, logs, metrics, outlets for results, systemd."""
