"""Small modules that all packages share: files, pictures, text, progress, sessions, tasks, devices, telemetry."""
